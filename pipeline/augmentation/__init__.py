"""Augmentation: random edits for each image, drawn so that groups of labels become equally large.

Files in reading order:

- `draws`: the edits and strengths that an image draws
- `balance`: how often images draw each edit, for groups of equal size
- `tally`: counts over the samples of an augmented data set, and the tables of its card
"""
