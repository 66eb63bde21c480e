"""Checks at plan time that every output gets a name of its own, and one that the store of the run can hold."""

import hashlib
import unicodedata
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from asyrp.errors import UserError
from pipeline.run.stage import SAMPLE_STAGE
from pipeline.storage.store import Store

OutputNames = Callable[[str], Iterable[str]]
"""Gives the output names of the image with this key."""

TELL_APART = "tell them apart in the output name, as --name '{key}_{edit}_{strength}' does, or rename one of them"

OBJECT_NAME_BYTES, LOCAL_PATH_BYTES = 1024, 4095
"""The longest name of an object on S3 and its like, and the longest path on a Linux disk, in UTF-8."""

LONGEST_FOLDER = f"data/{SAMPLE_STAGE}/000000.{'0' * 12}/0000"
"""Stands for the folder of an attempt: as long as any, but for the numbers of very many shards or files."""


class Output(NamedTuple):
    """An output of an image. `image` counts the images of the source."""

    image: int
    key: str
    name: str


class NameCheck:
    """Finds output names that cannot stand beside each other. It keeps one 64-bit hash per name and folder in memory.

    `store` is the root below which each name is that of a file. It is None if names are only told apart.
    """

    def __init__(self, store: Store | None) -> None:
        self.store = store
        self.hashes, self.folders = array("Q"), array("Q")
        self._folder = ""
        self._longest = ("", "")  # a key, and its longest name

    def add(self, key: str, names: Iterable[str]) -> None:
        """Add the output names of an image."""
        for name in names:
            self.hashes.append(hash64(folded(name)))
            if self.store is not None:
                self._add_as_file(key, name)

    def _add_as_file(self, key: str, name: str) -> None:
        if len(name.encode()) > len(self._longest[1].encode()):
            self._longest = key, name
        folder = name.rpartition("/")[0]
        if folder != self._folder:
            self._folder = folder
            self.folders.extend(hash64(folded(above)) for above in _folders_of(name))

    def check(self, keys: Callable[[], Iterable[str]], output_names: OutputNames) -> None:
        """Raise UserError if two images have the same output name, or names that the store cannot tell apart, or if a
        name is too long for the store. The message names the images.

        `keys` lists the keys of all images again.
        """
        if self.store is not None:
            self._refuse_too_long(self.store)
        files = np.frombuffer(self.hashes, dtype=np.uint64)
        values, counts = np.unique(files, return_counts=True)
        folders = np.unique(np.frombuffer(self.folders, dtype=np.uint64))
        suspects = {*values[counts > 1].tolist(), *np.intersect1d(values, folders).tolist()}
        if suspects:
            self._refuse_twins(suspects, keys, output_names)

    def _refuse_too_long(self, store: Store) -> None:
        key, name = self._longest
        path = f"{store.root}/{LONGEST_FOLDER}/{name}"
        most = LOCAL_PATH_BYTES if store.is_local else OBJECT_NAME_BYTES
        if (size := len(path.encode())) > most:
            raise UserError(
                f"the output of image '{key}' would have a path of {size} bytes at {store.url}, which takes {most}: "
                "give a shorter --output, or a shorter --name such as '{name}_{edit}_{strength}'"
            )

    def _refuse_twins(self, suspects: set[int], keys: Callable[[], Iterable[str]], output_names: OutputNames) -> None:
        form = Folding.of(self.store).form if self.store is not None else str
        files: dict[str, Output] = {}
        folders: dict[str, tuple[str, str]] = {}
        for image, key in enumerate(keys()):
            for name in output_names(key):
                if hash64(folded(name)) in suspects:
                    output = Output(image, key, name)
                    if (twin := files.setdefault(form(name), output)) is not output:
                        raise _twins(twin, output)
                for above in _folders_of(name) if self.store is not None else ():
                    if hash64(folded(above)) in suspects:
                        folders.setdefault(form(above), (key, name))
        for same in files.keys() & folders.keys():
            (_, file_key, file), (key, name) = files[same], folders[same]
            raise UserError(
                f"the output '{file}' of image '{file_key}' would be a file where '{name}' of image '{key}' needs a "
                f"folder: {TELL_APART}"
            )


def _twins(first: Output, second: Output) -> UserError:
    """The error of two outputs that cannot stand beside each other. No output name tells images of one key apart."""
    key, name = second.key, second.name
    if first.key == key and first.image != second.image:
        return UserError(f"two images of the source have the key '{key}': rename one of them there, or remove it")
    written = f"as '{name}'" if name == first.name else f"as '{first.name}' and '{name}', which are one file there"
    whose = f"two edits of image '{key}'" if first.image == second.image else f"images '{first.key}' and '{key}'"
    return UserError(f"{whose} would both be written {written}: {TELL_APART}")


@dataclass(frozen=True)
class Folding:
    """Which names a store takes for one: those that differ in the case of letters, or in how letters are composed."""

    of_case: bool
    of_composition: bool

    @classmethod
    def of(cls, store: Store) -> "Folding":
        """Finds out by trying. Object stores tell all names apart."""
        if not store.is_local:
            return cls(False, False)
        name = f".probe-{uuid.uuid4().hex}-\u00e9"
        store.write(name, b"")
        others = (name.upper(), unicodedata.normalize("NFD", name))
        found = cls(*map(store.exists, others))
        store.delete(name)
        return found

    def form(self, name: str) -> str:
        """A text that is the same for all names that the store takes for one."""
        if self.of_composition:
            name = unicodedata.normalize("NFD", name)
        return name.casefold() if self.of_case else name


def folded(name: str) -> str:
    """A text that is the same for all names that any file system takes for one."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _folders_of(name: str) -> Iterator[str]:
    """The folders that a path lies in."""
    while name := name.rpartition("/")[0]:
        yield name


def hash64(name: str) -> int:
    """A 64-bit BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
