"""The images that a plan or a version already has, compared with a new listing of their source."""

from array import array
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.images.source import SourceImage
from pipeline.run.name_check import hash64

Standing = Literal["new", "changed", "same"]


def version_text(size: int | None, etag: str | None) -> str:
    """A text that differs between two contents of an image if the listing shows a difference in size or ETag."""
    return f"{size} {etag}"


class KeySet:
    """A set of image keys, held as hashes of 8 bytes."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = np.unique(np.fromiter(map(hash64, keys), np.uint64))

    def __contains__(self, key: str) -> bool:
        hashed = np.uint64(hash64(key))
        index = int(np.searchsorted(self._hashes, hashed))
        return index < len(self._hashes) and bool(self._hashes[index] == hashed)

    def __len__(self) -> int:
        return len(self._hashes)


class KnownImages:
    """Images by key and version, held as hashes: 17 bytes an image. An image is marked as seen once the listing has it.

    If an image is given twice, its last version counts.
    """

    def __init__(self, images: Iterable[tuple[str, str]]) -> None:
        pairs = array("Q")
        for key, version in images:
            pairs.extend((hash64(key), hash64(version)))
        table = np.frombuffer(pairs, dtype=np.uint64).reshape(-1, 2)
        order = np.argsort(table[:, 0], kind="stable")  # so the last one of a key stays the last
        self.keys, self.versions = table[order, 0], table[order, 1]
        self.seen = np.zeros(len(order), dtype=bool)

    def compare(self, image: SourceImage) -> Standing:
        """Compares an image of the listing with the one that is known, and marks it as seen."""
        first, end = self._find(image.key)
        if first == end:
            return "new"
        self.seen[first:end] = True
        same = self.versions[end - 1] == hash64(version_text(image.size, image.etag))
        return "same" if same else "changed"

    @cached_property
    def gone(self) -> int:
        """The number of known images that the listing did not have. Valid once the whole listing was compared."""
        return len(np.unique(self.keys[~self.seen]))

    def is_gone(self, key: str) -> bool:
        """Whether an image is known and the listing did not have it."""
        first, end = self._find(key)
        return first < end and not self.seen[first]

    def _find(self, key: str) -> tuple[int, int]:
        hashed = np.uint64(hash64(key))
        return int(np.searchsorted(self.keys, hashed)), int(np.searchsorted(self.keys, hashed, side="right"))
