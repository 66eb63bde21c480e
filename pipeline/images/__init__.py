"""Single images: where one is, how its bytes are fetched and decoded, and which ones are selected.

Files in reading order:

- `keys`: keys, made of names that somebody else chose
- `source`: one image of a source, with its key and location
- `selection`: the images of a source that are selected, by limit, share or conditions
- `fetch`: the bytes of one image, with retries and deadlines
- `codec`: bytes to a square array and back, and the refusal of images that cannot be edited
"""
