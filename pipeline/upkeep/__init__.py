"""Checks the storage of a run or a job, and deletes what is no longer needed.

verify     checks whether a run is whole (`asyrp verify`)
garbage    the files of a run that nothing names (`asyrp gc`)
retention  the old versions of a job, and their runs (`asyrp gc --keep-versions`)
"""
