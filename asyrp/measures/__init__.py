"""Measures of images, of edits, of sets of images and of intervals.

Files in reading order:

- `names`: the metrics by name, what each number means and which way is better; no torch
- `metrics`: the metrics of edited images, a batch at a time on the device
- `clip`: images and texts as unit vectors, through open_clip
- `perceptual`: the perceptual distance of two images, by LPIPS or by features of CLIP
- `scorers`: scores of images, from texts or from a classifier
- `image_sets`: FID and KID, from sums of features that merge
- `interval_curves`: distances while images are inverted, as sums that merge
- `intervals`: t_edit and t_boost from those curves; no torch
"""
