"""Directions in h-space, and the edits that combine them.

Files in reading order:

- `info`: the metadata of a direction file, read without torch
- `forms`: the three forms of a direction, and the direction file
- `edits`: named, weighted sums of directions, and their grammar
- `shift`: the shift of h that an edit makes at each timestep
- `algebra`: linear algebra on directions, such as projection and sums
- `search`: the search for the smallest strength that passes
- `presets`: the intervals and texts of the official release
- `released`: import of the official release's direction files
"""
