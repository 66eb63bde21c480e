"""The images of a folder or glob on any fsspec URL, one at a time, with their keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from posixpath import commonpath, dirname
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import has_magic

from asyrp.errors import UserError
from pipeline.storage import open_filesystem

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class SourceImage:
    """One image to edit. `key` is its path below the source; `etag` changes when its content does."""

    key: str
    uri: str
    size: int | None
    etag: str | None


def list_images(url: str) -> Iterator[SourceImage]:
    """The images below a folder (recursively) or matching a glob, in an order that only their names decide.

    Raises:
        UserError: if there is no such folder, or the glob matches nothing.
    """
    fs, path = open_filesystem(url)
    fs.invalidate_cache()
    if has_magic(path):
        yield from _glob(fs, path, url)
    elif fs.isdir(path):
        yield from _walk(fs, path.rstrip("/"))
    else:
        raise UserError(f"source {url} is no folder: give a folder of images, or a glob such as '{url}/**/*.png'")


def _walk(fs: AbstractFileSystem, root: str) -> Iterator[SourceImage]:
    for _, folders, files in fs.walk(root, detail=True, topdown=True):
        folders_in_order = sorted(folders.items())
        folders.clear()
        folders.update((name, entry) for name, entry in folders_in_order if not name.startswith("."))
        for name, entry in sorted(files.items()):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield _image(fs, root, entry)


def _glob(fs: AbstractFileSystem, pattern: str, url: str) -> Iterator[SourceImage]:
    found = [entry for _, entry in sorted(fs.glob(pattern, detail=True).items()) if entry["type"] == "file"]
    if not found:
        raise UserError(f"source {url} matches no file")
    # The part of the pattern before its first wildcard, so that a key does not depend on what matched.
    fixed = pattern[: min(pattern.index(c) for c in "*?[" if c in pattern)]
    root = commonpath([dirname(fixed), dirname(found[0]["name"])])
    for entry in found:
        yield _image(fs, root, entry)


def _image(fs: AbstractFileSystem, root: str, entry: dict[str, Any]) -> SourceImage:
    path = entry["name"]
    etag = next((str(entry[k]) for k in ("ETag", "etag", "md5Hash", "mtime", "created") if entry.get(k)), None)
    return SourceImage(path[len(root) :].lstrip("/"), fs.unstrip_protocol(path), entry.get("size"), etag)
