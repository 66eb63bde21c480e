"""Data sets made of finished runs: the versions that a job keeps, and exports in common formats.

versions      the versions of a data set that grows
known_images  the images that a plan or a version has, compared with a new listing
changes       the images of a source that are new or changed since a version
leases        which driver is at work on a job, and the history of its ticks
samples       rows of a manifest with their images
splits        the split of an image
formats       how each format writes a shard
export        a run or a version as a data set
card          the card of a data set, README.md
"""
