"""Sources: all images of a folder, glob, tar, table, list of URLs or run, with their labels.

Files in reading order:

- `listing`: the images of any source, in one listing
- `files`: image files in a folder or matching a glob
- `tars`: images in WebDataset tars
- `tables`: images in Parquet files, and lists of URLs
- `runs`: the images that another run has made
- `origin`: what the manifests of a run may name as a source
- `labels`: tables of labels by image key
"""
