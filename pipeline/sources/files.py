"""Lists the files below a folder, or those of them that match a glob, on any filesystem."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from posixpath import basename
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from asyrp.errors import UserError
from pipeline.images.keys import safe_key
from pipeline.images.skipped import Skipped
from pipeline.images.source import DENIED, SourceImage, version_of

CLUTTER = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}
FileInfo = dict[str, Any]
"""A file as fsspec lists it: `name`, `type`, `size`, and fields of its filesystem."""


def is_clutter(path: str) -> bool:
    """Whether a relative path is of a hidden file, or of one that a system keeps beside images for itself."""
    parts = (part for part in path.split("/") if part not in ("", ".", ".."))
    return any(part.startswith(".") or part.lower() in CLUTTER for part in parts)


@dataclass(frozen=True)
class File:
    """A file below a folder. `key` is its path relative to the folder. `denial` says why it must not be read."""

    path: str
    key: str
    entry: FileInfo
    denial: str | None = None

    def image(self, fs: AbstractFileSystem) -> SourceImage:
        """The image in the file; one that cannot be fetched if it is denied."""
        if self.denial:
            return SourceImage(self.key, f"{DENIED}{self.path} {self.denial}")
        return SourceImage(self.key, fs.unstrip_protocol(self.path), self.entry.get("size"), version_of(self.entry))


class Pattern:
    """A glob relative to a folder: `**` stands for any folders, `*` for anything within a name."""

    def __init__(self, text: str) -> None:
        """Raises UserError if the text is no glob."""
        self.parts = text.split("/")
        try:
            self._whole = re.compile(glob_translate(text))
        except (ValueError, re.error) as error:
            raise UserError(f"'{text}' is no glob: {error}") from error

    def matches(self, path: str) -> bool:
        return self._whole.match(path) is not None

    def enters(self, folder: str) -> bool:
        """Whether files below a folder can match."""
        depth = folder.count("/") + 1
        begin = self.parts[:depth]
        if "**" in begin:
            return True
        return depth < len(self.parts) and re.match(glob_translate("/".join(begin)), folder) is not None


def split_glob(fs: AbstractFileSystem, path: str) -> tuple[str, str]:
    """The folder that a glob begins in, and the glob relative to it.

    A folder may have the signs of a glob in its name. Parts of the path that exist as folders are no globs.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if has_magic(part) and not (number and fs.isdir("/".join(parts[: number + 1]))):
            root = "/".join(parts[:number])
            return root or ("/" if number else ""), "/".join(parts[number:])
    return path, ""


class Tree:
    """Lists the files below a folder that are `readable` by the endings of their names. The others are counted.

    fsspec's own `walk` and `glob` silently leave out folders that they cannot list, so they are not used.

    On the local disk only regular files are read. A link is followed if it leads to something in the folder. A folder
    is listed through one link only, and never inside itself. `found` counts the files that match the pattern.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        root: str,
        readable: tuple[str, ...],
        skipped: Skipped,
        pattern: Pattern | None = None,
    ) -> None:
        self.fs, self.root, self.readable, self.skipped, self.pattern = fs, root, readable, skipped, pattern
        self._is_local = isinstance(fs, LocalFileSystem)
        self._real_root = Path(os.path.realpath(root))
        self._followed: set[Path] = set()
        self.found = 0

    def files(self) -> Iterator[File]:
        """The files, each folder in the order of names, before the folders in it.

        Raises:
            OSError: if a folder cannot be listed.
        """
        pending = [self.root]
        while pending:
            folder = pending.pop()
            folders: list[FileInfo] = []
            for entry in self._entries(folder):
                if entry["type"] == "directory" or self._is_link_to_folder(entry):
                    folders.append(entry)
                elif file := self._file(entry):
                    yield file
            entered: list[str] = []
            for entry in folders:
                if file := self._folder(entry, folder, entered):
                    yield file
            pending += reversed(entered)

    def _entries(self, folder: str) -> Iterator[FileInfo]:
        """What is in a folder, in the order of names."""
        listed = ((basename(entry["name"].rstrip("/")), entry) for entry in self.fs.ls(folder, detail=True))
        for name, entry in sorted(listed, key=itemgetter(0)):
            if entry["name"].rstrip("/") == folder.rstrip("/"):
                yield from self._below_slash(folder)
            elif not is_clutter(name) and not (entry["type"] == "file" and entry["name"].endswith("/")):
                yield entry

    def _below_slash(self, folder: str) -> Iterator[FileInfo]:
        """The objects whose names go on with a second slash, as in `photos//x.png`. `ls` does not reach them."""
        found = self.fs.find(folder, prefix="/", detail=True)
        for name, entry in sorted(found.items()):
            if name.startswith(f"{folder}//") and not name.endswith("/") and not is_clutter(name[len(folder) :]):
                yield entry

    def _relative(self, path: str) -> str:
        return path.removeprefix(self.root).removeprefix("/")

    def _file(self, entry: FileInfo) -> File | None:
        """A file that is to be read, or to be denied; None if it is passed over."""
        path = entry["name"]
        relative = self._relative(path)
        if self.pattern and not self.pattern.matches(relative):
            return None
        self.found += 1
        if not path.lower().endswith(self.readable):
            self.skipped.add(path)
            return None
        return File(path, safe_key(relative), entry, self._denial(entry) if self._is_local else None)

    def _denial(self, entry: FileInfo) -> str | None:
        """Why a local file must not be read."""
        if entry["type"] == "file" and not entry.get("islink"):
            return None
        try:
            target = Path(os.path.realpath(entry["name"], strict=True))
            is_regular = stat.S_ISREG(target.stat().st_mode)
        except OSError:
            return "is a link that leads nowhere"
        if entry.get("islink") and not target.is_relative_to(self._real_root):
            return "is a link out of the source"
        return None if is_regular else "is not a regular file"

    def _is_link_to_folder(self, entry: FileInfo) -> bool:
        return bool(entry.get("islink")) and Path(entry["name"]).is_dir()

    def _folder(self, entry: FileInfo, parent: str, entered: list[str]) -> File | None:
        """Add a folder to those to be entered. A link out of the source is given as a file that is denied."""
        path = entry["name"].rstrip("/")
        relative = self._relative(path)
        if self.pattern and not self.pattern.enters(relative):
            return None
        if entry.get("islink"):
            target = Path(os.path.realpath(path))
            if not target.is_relative_to(self._real_root):
                return File(path, safe_key(relative), entry, "is a link out of the source")
            if target in self._followed or Path(os.path.realpath(parent)).is_relative_to(target):
                self.skipped.add_link()
                return None
            self._followed.add(target)
        entered.append(path)
        return None
