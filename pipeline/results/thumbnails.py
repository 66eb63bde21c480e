"""Makes small pictures of rows, before and after their edit."""

import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from PIL import Image

from asyrp.errors import UserError
from pipeline.images.codec import Fit, ImageRefused, decode_square, refusing
from pipeline.images.fetch import Changed
from pipeline.images.statuses import FETCH_ERROR, OK
from pipeline.results.rows import Results
from pipeline.run.commit import committed_rows
from pipeline.run.manifest import Row
from pipeline.run.sinks import read_output, read_source
from pipeline.sources.origin import Origin
from pipeline.storage.credentials import redacted
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

PIXELS, QUALITY = 128, 80


class Thumbnail(NamedTuple):
    """A WebP of at most PIXELS a side, or in `missing` the reason why there is none."""

    webp: bytes | None
    missing: str | None = None


class Pair(NamedTuple):
    """A source image, cropped as it was for the edit, and the output made of it."""

    before: Thumbnail
    after: Thumbnail


RowAddress = tuple[str, int, int]
"""Stage, shard, and the number of a row in the shard's manifest."""


class Thumbnails:
    """Makes the pictures of rows, each once. If a picture cannot be shown, it holds the reason."""

    def __init__(self, store: Store, size: int, fit: Fit) -> None:
        self.store, self.size, self.fit = store, size, fit
        self._origin = Origin(store)
        self._pairs: dict[RowAddress, Pair] = {}

    def pairs(self, results: Results, chosen: Sequence[int]) -> dict[int, Pair]:
        """The pictures of the chosen rows, in their order."""
        addresses = {row: _address(results, row) for row in chosen}
        missing: defaultdict[tuple[str, int], set[RowAddress]] = defaultdict(set)
        for address in addresses.values():
            if address not in self._pairs:
                missing[address[:2]].add(address)
        for pairs in read_ahead(self._of_shard, missing.values()):
            self._pairs |= pairs
        return {row: self._pairs[address] for row, address in addresses.items()}

    def _of_shard(self, addresses: set[RowAddress]) -> dict[RowAddress, Pair]:
        """The pictures of rows of one shard."""
        stage, shard, _ = next(iter(addresses))
        rows = {
            (stage, shard, n): self._origin.held(row)
            for n, row in enumerate(committed_rows(self.store, stage, [shard]))
        }
        pairs: dict[RowAddress, Pair] = {}
        for _, same_image in groupby(sorted(addresses), key=lambda address: rows[address]["key"]):
            of_image = list(same_image)
            before = self._before(rows[of_image[0]])
            pairs |= {address: Pair(before, self._after(rows[address])) for address in of_image}
        return pairs

    def _before(self, row: Row) -> Thumbnail:
        try:
            with refusing(FETCH_ERROR):
                data = read_source(row)
            return Thumbnail(_webp(data, self.size, self.fit))
        except ImageRefused as refusal:
            return Thumbnail(None, _why_no_source(refusal))

    def _after(self, row: Row) -> Thumbnail:
        if row["status"] != OK:
            return Thumbnail(None, f"no image was made: {row['status']}")
        try:
            with refusing(FETCH_ERROR):
                data = read_output(self.store, row)
            return Thumbnail(_webp(data, row["width"], "exact"))
        except ImageRefused as refusal:
            is_told = isinstance(refusal.__cause__, UserError)
            return Thumbnail(None, redacted(f"{'' if is_told else 'the output cannot be read: '}{refusal}"))


def _why_no_source(refusal: ImageRefused) -> str:
    if isinstance(refusal.__cause__, Changed):
        return "the source is another by now than when it was edited"
    if isinstance(refusal.__cause__, FileNotFoundError):
        return "the source is gone"
    what = "cannot be read" if refusal.status == FETCH_ERROR else "is no image to edit"
    return redacted(f"the source {what}: {refusal}")


def _address(results: Results, row: int) -> RowAddress:
    return results.stages.names[results.stages.codes[row]], int(results.shards[row]), int(results.numbers[row])


def _webp(data: bytes, size: int, fit: Fit) -> bytes:
    """A picture of an image, decoded as it is for an edit. Raises ImageRefused."""
    image = Image.fromarray(decode_square(data, size, fit).pixels)
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()
