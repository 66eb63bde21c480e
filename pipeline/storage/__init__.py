"""Storage: files on any fsspec filesystem, written so that a crash leaves a readable state.

Files in reading order:

- `text`: texts that can be stored, told from names that are not Unicode
- `store`: a folder on any filesystem, with whole writes, create-if-absent and listings
- `records`: small JSON files, each held against a dataclass when it is read
- `read_ahead`: parallel reads ahead of the caller
- `credentials`: secrets in URLs and messages, kept out of files, names and logs
- `failures`: errors of the machine, the cluster and stores, told from bugs and said in one sentence
"""
