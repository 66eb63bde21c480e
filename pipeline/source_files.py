"""Files below a folder or matching a glob, on any filesystem."""

from collections.abc import Iterator
from pathlib import Path
from posixpath import commonpath, dirname
from typing import Any

from fsspec import AbstractFileSystem

from asyrp.errors import UserError
from pipeline.source_image import DENIED, SourceImage, version_of

WILDCARDS = "*?["
Entry = dict[str, Any]


def walk(fs: AbstractFileSystem, root: str) -> Iterator[Entry]:
    """The files below a folder, without hidden ones, each folder in the order of names."""
    for _, folders, files in fs.walk(root, detail=True, topdown=True, on_error="raise"):
        folders_in_order = sorted(folders.items())
        folders.clear()
        folders.update((name, entry) for name, entry in folders_in_order if not name.startswith("."))
        yield from (entry for name, entry in sorted(files.items()) if not name.startswith("."))


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
