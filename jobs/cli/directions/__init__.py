"""The `asyrp directions` commands.

In reading order:

- `files`: list, show, preview and import direction files
- `learn`, `learn_text`: make directions from labels, classifiers, components and Jacobians; from texts
- `score`: label images by texts or a classifier; draw images from a model
- `algebra`: project, combine, scale, average and compare directions
"""
