"""Finds directions in h-space. Each way adds up sums over images, which merge, and solves them at the end.

In reading order:

- `labels`: regression of h on labels, and h of noised images
- `classifier`: linear classifiers of h, as a stream of batches
- `pca`: principal components of h, from a sketch
- `jacobian`: singular vectors of d eps / d h, and what those of many images have in common
- `text`: the training of an implicit function f_t with a pair of texts
- `calibration`: the strength that counts as 1, where the way of learning does not say it
"""
