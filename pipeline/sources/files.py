"""Files below a folder or matching a glob, on any filesystem."""

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from posixpath import basename, commonpath, dirname
from typing import Any

from fsspec import AbstractFileSystem

from asyrp.errors import UserError
from pipeline.images.source import DENIED, SourceImage, version_of

WILDCARDS = "*?["
Entry = dict[str, Any]


def walk(fs: AbstractFileSystem, root: str) -> Iterator[Entry]:
    """The files below a folder, without hidden ones, each folder in the order of names.

    Not fsspec's `walk`, which leaves out in silence a folder that it cannot list.

    Raises:
        OSError: if a folder cannot be listed.
    """
    listed = ((basename(entry["name"].rstrip("/")), entry) for entry in fs.ls(root, detail=True))
    visible = sorted((pair for pair in listed if not pair[0].startswith(".")), key=itemgetter(0))
    yield from (entry for _, entry in visible if entry["type"] != "directory")
    for _, entry in visible:
        if entry["type"] == "directory" and entry["name"].rstrip("/") != root:
            yield from walk(fs, entry["name"].rstrip("/"))


def glob_files(fs: AbstractFileSystem, pattern: str, url: str) -> tuple[str, Iterator[Entry]]:
    """The files that match, in the order of names, and the folder that their keys begin below.

    Raises:
        UserError: if nothing matches.
    """
    found = [entry for _, entry in sorted(fs.glob(pattern, detail=True).items()) if entry["type"] == "file"]
    if not found:
        raise UserError(f"source {url} matches no file")
    # The part of the pattern before its first wildcard, so that a key does not depend on what matched.
    fixed = pattern[: min(pattern.index(c) for c in WILDCARDS if c in pattern)]
    return commonpath([dirname(fixed), dirname(found[0]["name"])]), iter(found)


def image_of(fs: AbstractFileSystem, root: str, entry: Entry) -> SourceImage:
    """An image file; a symbolic link that leaves the source is denied."""
    path = entry["name"]
    uri = fs.unstrip_protocol(path)
    if entry.get("islink") and not Path(path).resolve().is_relative_to(Path(root).resolve()):
        uri = f"{DENIED}{path} is a link out of the source"
    return SourceImage(path[len(root) :].lstrip("/"), uri, entry.get("size"), version_of(entry))
