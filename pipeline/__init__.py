"""The engine: runs stages, which are pure functions over batches, on large sets of images, with all state on storage.

This floor imports `asyrp` and nothing of `jobs`. Its rooms in reading order, each of which may import those before it:

- `storage`: files on any filesystem
- `images`: single images, how they are fetched, decoded and selected
- `run`: a run on storage: stages, plan, attempts, commits, manifests
- `sources`: all images of a folder, tar, table, list or run
- `engine`: the driver, its actors, and the worker in each of them
- `augmentation`: random, balanced edits for each image
- `stages`: the stages of the method, and the functions that compute them
- `datasets`: versions and exports of what runs made
- `results`: rows, summaries and pictures for reports
- `upkeep`: checks, garbage collection and retention
"""
