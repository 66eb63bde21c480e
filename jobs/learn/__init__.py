"""Learning of directions and intervals from the images of a source.

Files in reading order:

- `collect`: adds up statistics of images in a run, whose shards hold sums in place of images
- `request`: what the ways of learning from h share
- `labels`: directions from labels of many or few images, and how far they can be trusted
- `average`: the mean of an implicit direction over images
- `classifier`: directions from linear classifiers
- `unsupervised`: principal components, and singular vectors of Jacobians
- `text`: directions from pairs of texts
- `intervals`: t_edit and t_boost of a sample of images
- `score`: labels from CLIP or a classifier
- `draw_images`: images drawn from a model
- `preview`: the sheet of one direction
"""
