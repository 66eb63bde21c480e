"""Measures and shows what a finished run did.

In reading order:

- `evaluate`: metrics of the images of a finished run
- `set_distances`: FID and KID, of two sources or of a run's edits against their sources
- `report`: reads all that a report tells
- `tables`: the tables of a report, the same in every format
- `page`: a report as one HTML file; `templates/` holds its style and scripts
- `markdown`: a report as Markdown and PNG
"""
