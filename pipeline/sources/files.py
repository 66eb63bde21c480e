"""Lists the files below a folder, or those that match a glob, on any filesystem."""

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from posixpath import basename, commonpath, dirname
from typing import Any

from fsspec import AbstractFileSystem

from asyrp.errors import UserError
from pipeline.images.keys import safe_key
from pipeline.images.source import DENIED, SourceImage, version_of

WILDCARDS = "*?["
FileInfo = dict[str, Any]
"""A file as fsspec lists it: `name`, `type`, `size`, and fields of its filesystem."""


def walk(fs: AbstractFileSystem, root: str) -> Iterator[FileInfo]:
    """The files below a folder, without hidden ones, each folder in the order of names.

    fsspec's own `walk` silently leaves out a folder that it cannot list, so it is not used.

    Raises:
        OSError: if a folder cannot be listed.
    """
    listed = ((basename(entry["name"].rstrip("/")), entry) for entry in fs.ls(root, detail=True))
    visible = sorted((pair for pair in listed if not pair[0].startswith(".")), key=itemgetter(0))
    yield from (entry for _, entry in visible if entry["type"] != "directory")
    for _, entry in visible:
        if entry["type"] == "directory" and entry["name"].rstrip("/") != root:
            yield from walk(fs, entry["name"].rstrip("/"))


def glob_files(fs: AbstractFileSystem, pattern: str, url: str) -> tuple[str, Iterator[FileInfo]]:
    """The folder that the keys are relative to, and the files that match, in the order of names.

    Raises:
        UserError: if nothing matches.
    """
    found = [entry for _, entry in sorted(fs.glob(pattern, detail=True).items()) if entry["type"] == "file"]
    if not found:
        raise UserError(f"source {url} matches no file")
    # The folder depends on the pattern before its first wildcard, so that a key does not depend on what matched.
    fixed = pattern[: min(pattern.index(c) for c in WILDCARDS if c in pattern)]
    return commonpath([dirname(fixed), dirname(found[0]["name"])]), iter(found)


def image_of(fs: AbstractFileSystem, root: str, entry: FileInfo) -> SourceImage:
    """The image in a file; its key is its path relative to `root`. A symbolic link out of the source is denied."""
    path = entry["name"]
    uri = fs.unstrip_protocol(path)
    if entry.get("islink") and not Path(path).resolve().is_relative_to(Path(root).resolve()):
        uri = f"{DENIED}{path} is a link out of the source"
    return SourceImage(safe_key(path[len(root) :].removeprefix("/")), uri, entry.get("size"), version_of(entry))
