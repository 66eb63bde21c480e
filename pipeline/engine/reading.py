"""Reads what a stage needs of one image: its source, what an earlier stage made of it, or both."""

import hashlib
import time
from dataclasses import dataclass, field

import numpy as np

from pipeline.engine.shard_attempt import Failure, Item
from pipeline.engine.shard_input import ShardInput
from pipeline.engine.threads import Meter
from pipeline.images.codec import ImageRefused, refusing, to_floats
from pipeline.images.decoder import Decoders
from pipeline.images.fetch import Changed
from pipeline.images.read import fetched_bytes
from pipeline.images.statuses import FETCH_ERROR
from pipeline.run.stage import ImageFormat


@dataclass(frozen=True)
class ItemReader:
    """Fills items with pixels, or with the failure that their rows will say. Called by reader threads.

    Whatever goes wrong while one image is fetched or decoded is the failure of that image. Only an error of the process
    itself is raised: it has no memory, or it cannot start a decoder.
    """

    image_format: ImageFormat
    meter: Meter
    decoders: Decoders = field(default_factory=Decoders)

    def read(self, item: Item) -> None:
        """Leave pixels [V_in, C, H, W] in the item; none if it has failed, now or in the stage before."""
        try:
            if item.attempt.input is None:
                self._read_image(item)
            elif _has_input(item, item.attempt.input):
                self._read_input(item, item.attempt.input)
        except ImageRefused as refusal:
            item.pixels, item.failure = None, Failure.of(refusal)

    def close(self) -> None:
        """End the decoders. No thread may be reading."""
        self.decoders.close()

    def _read_image(self, item: Item) -> None:
        start = time.perf_counter()
        with refusing(FETCH_ERROR):
            with self.meter.time("fetch"):
                data = fetched_bytes(item.plan, self.image_format.max_image_bytes)
            edited_from, item.sha256 = item.sha256, hashlib.sha256(data).hexdigest()
            if edited_from not in (None, item.sha256):
                raise Changed("the source has other bytes than when it was edited")
        fetched = time.perf_counter()
        item.fetch_ms = 1000 * (fetched - start)
        try:
            with self.meter.time("decode"):
                decoded = self.decoders.decode(data, self.image_format.size, self.image_format.fit)
        finally:
            item.decode_ms = 1000 * (time.perf_counter() - fetched)
        item.width, item.height = decoded.width, decoded.height
        item.pixels = decoded.pixels[None]

    def _read_input(self, item: Item, shard: ShardInput) -> None:
        """What an earlier stage made of the image, and, if the stage wants it, the source that it was made from."""
        if item.attempt.stage.with_source:
            self._read_image(item)
        with refusing(FETCH_ERROR), self.meter.time("fetch"):
            read = shard.outputs(item.plan.row)
            item.pixels = read if item.pixels is None else np.concatenate([read, to_floats(item.pixels[0])[None]])


def _has_input(item: Item, shard: ShardInput) -> bool:
    """Whether the stage before made anything of the image; what it knew of the source is taken over."""
    rows = shard.rows[item.plan.row]
    item.width, item.height = rows[0]["source_width"], rows[0]["source_height"]
    item.sha256 = rows[0]["source_sha256"]
    return any(row["output_uri"] is not None for row in rows)
