"""A run on storage: its stages, plan, attempts, commits and manifests.

Files in reading order:

- `stage`: the declaration of a stage
- `names`: names that somebody else chose, as keys, paths, tar members and texts for people
- `name_check`: each output has a name of its own, and the store can hold it
- `plan`: the list of images, frozen and cut into shards
- `additions`: shards that are added to a plan later
- `commit`: an attempt at a shard, and the commit that makes it count
- `manifest`: the schema of manifest rows
- `sinks`: where the finished images of an attempt are written, and how they are read again
- `containers`: tar and Parquet files that hold many samples
- `arrays`: files of latents and statistics
- `progress`: the state of a run, read from its storage
"""
