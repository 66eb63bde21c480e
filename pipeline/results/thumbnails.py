"""Small pictures of rows, before and after their edit."""

import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from PIL import Image

from asyrp.errors import UserError
from pipeline.images.codec import Fit, ImageRefused, decode, to_uint8
from pipeline.images.fetch import Changed
from pipeline.images.statuses import OK
from pipeline.results.rows import Results
from pipeline.run.commit import committed_rows
from pipeline.run.manifest import Row
from pipeline.run.sinks import read_output, read_source
from pipeline.storage.credentials import redacted
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

PIXELS, QUALITY = 128, 80


class Thumbnail(NamedTuple):
    """A WebP of at most PIXELS a side, or the reason why there is none."""

    webp: bytes | None
    missing: str | None = None


class Pair(NamedTuple):
    """A source image, cropped as it was to be edited, and what was made of it."""

    before: Thumbnail
    after: Thumbnail


Place = tuple[str, int, int]
"""Stage, shard, and the number of a row in the shard's manifest."""


class Thumbnails:
    """The pictures of rows of a run; each is made once. Where one cannot be shown, it says why."""

    def __init__(self, store: Store, size: int, fit: Fit) -> None:
        self.store, self.size, self.fit = store, size, fit
        self._made: dict[Place, Pair] = {}

    def of(self, results: Results, chosen: Sequence[int]) -> dict[int, Pair]:
        """The pictures of the chosen rows, in their order."""
        places = {row: _place(results, row) for row in chosen}
        missing: defaultdict[tuple[str, int], set[Place]] = defaultdict(set)
        for place in places.values():
            if place not in self._made:
                missing[place[:2]].add(place)
        for made in read_ahead(self._of_shard, missing.values()):
            self._made |= made
        return {row: self._made[place] for row, place in places.items()}

    def _of_shard(self, places: set[Place]) -> dict[Place, Pair]:
        stage, shard, _ = next(iter(places))
        rows = {(stage, shard, n): row for n, row in enumerate(committed_rows(self.store, stage, [shard]))}
        made: dict[Place, Pair] = {}
        for _, of_image in groupby(sorted(places), key=lambda place: rows[place]["key"]):
            found = list(of_image)
            before = self._before(rows[found[0]])
            made |= {place: Pair(before, self._after(rows[place])) for place in found}
        return made

    def _before(self, row: Row) -> Thumbnail:
        try:
            pixels = decode(read_source(row), self.size, self.fit).pixels
        except Changed:
            return Thumbnail(None, "the source is another by now than when it was edited")
        except FileNotFoundError:
            return Thumbnail(None, "the source is gone")
        except OSError as error:
            return Thumbnail(None, f"the source cannot be read: {redacted(str(error))}")
        except ImageRefused as refusal:
            return Thumbnail(None, f"the source is no image to edit: {refusal}")
        return Thumbnail(_webp(Image.fromarray(to_uint8(pixels))))

    def _after(self, row: Row) -> Thumbnail:
        if row["status"] != OK:
            return Thumbnail(None, f"no image was made: {row['status']}")
        try:
            return Thumbnail(_webp(Image.open(io.BytesIO(read_output(self.store, row))).convert("RGB")))
        except UserError as error:
            return Thumbnail(None, redacted(str(error)))
        except OSError as error:
            return Thumbnail(None, f"the output cannot be read: {redacted(str(error))}")


def _place(results: Results, row: int) -> Place:
    return results.stages.names[results.stages.codes[row]], int(results.shards[row]), int(results.numbers[row])


def _webp(image: Image.Image) -> bytes:
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()
