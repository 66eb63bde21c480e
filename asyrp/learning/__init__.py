"""Learning of directions in h-space. Most ways add up sums over images, which merge, and solve them at the end.

Files in reading order:

- `labels`: regression of h on labels, and h of noised images
- `held_out`: how well a label can be told from h of images that were not learned from, and where it is settled
- `probe`: readings of a label off h, which give labels to images that have none
- `verdict`: how far a direction from labels can be trusted
- `classifier`: linear classifiers of h, as a stream of batches
- `pca`: principal components of h, from a sketch
- `jacobian`: singular vectors of d eps / d h, at one image and over many images
- `text`: the training of an implicit function f_t with a pair of texts
- `calibration`: finds the strength that counts as 1 for a direction whose training does not set it
"""
