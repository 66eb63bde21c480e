"""Single images: where one is, how its bytes are fetched and decoded, and which ones are selected.

Files in reading order:

- `keys`: keys, made of names that somebody else chose
- `source`: one image of a source, with its key and location; the formats that are read
- `statuses`: what can become of an image
- `skipped`: the numbers of files of a source that are not read
- `selection`: the images of a source that are selected, by limit, share or conditions
- `objects`: the bytes of one object of a filesystem, within a deadline and a largest size
- `fetch`: the bytes of one image, from an object, a tar or a Parquet file, with retries
- `pixels`: an image of any mode to upright 8-bit sRGB
- `codec`: bytes to a square array and back, and the refusal of images that cannot be edited
- `decoder_process`, `decoder`: the same in a child process, which a crash, a loop or too much memory cannot leave
- `read`: one image, fetched and decoded, for commands that look at a few
"""
