"""Single images: where one is, how its bytes are fetched and decoded, and which ones are selected.

Files in reading order:

- `source`: one image of a source, with its key and location
- `skipped`: the numbers of files of a source that are not read
- `selection`: the images of a source that are selected, by limit, share or conditions
- `objects`: the bytes of one object of a filesystem, within a deadline and a largest size
- `fetch`: the bytes of one image, from an object, a tar or a Parquet file, with retries
- `codec`: bytes to a square array and back, and the refusal of images that cannot be edited
"""
