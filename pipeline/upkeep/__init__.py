"""Checks the storage of a run or a job, and deletes what is no longer needed.

verify     checks whether a run is whole (`asyrp verify`)
strangers  files among the records that asyrp did not write
garbage    the files of a run that nothing names (`asyrp gc`)
retention  the old versions of a job, and their runs (`asyrp gc --keep-versions`)
"""
