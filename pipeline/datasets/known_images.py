"""Images that are known already, to be held against a new listing of their source."""

from array import array
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.images.source import SourceImage
from pipeline.run.plan import hash64

Standing = Literal["new", "changed", "same"]


def version_text(size: int | None, etag: str | None) -> str:
    """What tells one content of an image from another, as far as its listing says."""
    return f"{size} {etag}"


class KeySet:
    """Keys of images as hashes, 8 bytes each."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = np.unique(np.fromiter(map(hash64, keys), np.uint64))

    def __contains__(self, key: str) -> bool:
        hashed = np.uint64(hash64(key))
        index = int(np.searchsorted(self._hashes, hashed))
        return index < len(self._hashes) and bool(self._hashes[index] == hashed)

    def __len__(self) -> int:
        return len(self._hashes)


class KnownImages:
    """Keys and versions as hashes, 17 bytes an image; each is marked once the listing has it.

    Of an image that is given twice the last version counts.
    """

    def __init__(self, images: Iterable[tuple[str, str]]) -> None:
        pairs = array("Q")
        for key, version in images:
            pairs.extend((hash64(key), hash64(version)))
        table = np.frombuffer(pairs, dtype=np.uint64).reshape(-1, 2)
        order = np.argsort(table[:, 0], kind="stable")  # so the last one of a key stays the last
        self.keys, self.versions = table[order, 0], table[order, 1]
        self.seen = np.zeros(len(order), dtype=bool)

    def look_at(self, image: SourceImage) -> Standing:
        """Whether an image of the listing is known, and unchanged; of one that is known, that it is still there is
        noted."""
        first, end = self._find(image.key)
        if first == end:
            return "new"
        self.seen[first:end] = True
        same = self.versions[end - 1] == hash64(version_text(image.size, image.etag))
        return "same" if same else "changed"

    @cached_property
    def gone(self) -> int:
        """How many images the listing did not have. To be asked when all of it was looked at."""
        return len(np.unique(self.keys[~self.seen]))

    def is_gone(self, key: str) -> bool:
        """Whether the listing did not have a known image."""
        first, end = self._find(key)
        return first < end and not self.seen[first]

    def _find(self, key: str) -> tuple[int, int]:
        hashed = np.uint64(hash64(key))
        return int(np.searchsorted(self.keys, hashed)), int(np.searchsorted(self.keys, hashed, side="right"))
