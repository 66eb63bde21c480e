"""A folder on any fsspec filesystem, with the three operations that durability rests on.

Filesystem and path stay together: a listed path is never opened again through its bare name.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from asyrp.errors import UserError


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL (or local path) and the path on it.

    Raises:
        UserError: if the protocol is unknown or its driver is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {url}: {error}") from error


def read_url(url: str) -> bytes:
    """The bytes of one file anywhere. Raises OSError, or UserError for an unknown protocol."""
    fs, path = open_filesystem(url)
    return fs.cat_file(path)


class Store:
    """The files below one root URL, named by paths relative to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, root = open_filesystem(url)
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.url,)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        return self.fs.cat_file(self.path(name))

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing what is there; a reader sees all of it or none of it."""
        if self.is_local:
            self._local_temporary(name, data).replace(self.path(name))
        else:
            self.fs.pipe_file(self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file unless there is one; False if there was."""
        try:
            if self.is_local:
                self._local_link(name, data)
            else:
                self.fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def names(self, folder: str) -> Iterator[str]:
        """The names of the files directly in `folder`; none if there is no such folder."""
        self.fs.invalidate_cache()
        try:
            entries: list[dict[str, Any]] = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return
        for entry in entries:
            name = entry["name"].rsplit("/", 1)[-1]
            if entry["type"] == "file" and not name.startswith("."):
                yield name

    def delete(self, name: str) -> None:
        """Delete a file or a folder; nothing happens if it is not there."""
        if self.fs.exists(self.path(name)):
            self.fs.rm(self.path(name), recursive=True)

    def _local_temporary(self, name: str, data: bytes) -> Path:
        """Write and fsync a hidden file beside the target, so that renaming it stays on one disk."""
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _local_link(self, name: str, data: bytes) -> None:
        temporary = self._local_temporary(name, data)
        try:
            os.link(temporary, self.path(name))
        finally:
            temporary.unlink()
