"""Reads what a stage needs of one image: its source, what an earlier stage made of it, or both."""

import hashlib
import time
from dataclasses import dataclass

import numpy as np

from pipeline.engine.shard_attempt import Failure, Item
from pipeline.engine.shard_input import ShardInput
from pipeline.engine.threads import Meter
from pipeline.images.codec import ImageRefused, decode
from pipeline.images.fetch import Changed, fetch
from pipeline.images.objects import TooLarge
from pipeline.images.statuses import FETCH_ERROR, REJECTED_SIZE
from pipeline.run.sinks import DamagedOutput
from pipeline.run.stage import ImageFormat


@dataclass(frozen=True)
class ItemReader:
    """Fills items with pixels, or with the failure that their rows will say. Called by reader threads."""

    image_format: ImageFormat
    meter: Meter

    def read(self, item: Item) -> None:
        """Leave pixels [V_in, C, H, W] in the item; none if it has failed, now or in the stage before."""
        if item.attempt.input is None:
            self._read_image(item)
        elif _has_input(item, item.attempt.input):
            self._read_input(item, item.attempt.input)

    def _read_image(self, item: Item) -> None:
        start = time.perf_counter()
        try:
            with self.meter.time("fetch"):
                data = fetch(item.plan, max_bytes=self.image_format.max_image_bytes)
        except (OSError, EOFError) as error:
            status = REJECTED_SIZE if isinstance(error, TooLarge) else FETCH_ERROR
            item.failure = Failure.from_error(status, error)
            return
        edited_from, item.sha256 = item.sha256, hashlib.sha256(data).hexdigest()
        if edited_from not in (None, item.sha256):
            changed = Changed("the source has other bytes than when it was edited")
            item.failure = Failure.from_error(FETCH_ERROR, changed)
            return
        fetched = time.perf_counter()
        item.fetch_ms = 1000 * (fetched - start)
        try:
            with self.meter.time("decode"):
                decoded = decode(data, self.image_format.size, self.image_format.fit)
        except ImageRefused as refusal:
            cause = refusal.__cause__ or refusal
            item.failure = Failure(refusal.status, type(cause).__name__, str(refusal)[:500])
            return
        finally:
            item.decode_ms = 1000 * (time.perf_counter() - fetched)
        item.width, item.height = decoded.width, decoded.height
        item.pixels = decoded.pixels[None]

    def _read_input(self, item: Item, shard: ShardInput) -> None:
        """What an earlier stage made of the image, and, if the stage wants it, the source that it was made from."""
        if item.attempt.stage.with_source:
            self._read_image(item)
            if item.failure is not None:
                return
        try:
            with self.meter.time("fetch"):
                read = shard.outputs(item.plan.row)
        except (OSError, DamagedOutput) as error:
            item.pixels, item.failure = None, Failure.from_error(FETCH_ERROR, error)
            return
        item.pixels = read if item.pixels is None else np.concatenate([read, item.pixels])


def _has_input(item: Item, shard: ShardInput) -> bool:
    """Whether the stage before made anything of the image; what it knew of the source is taken over."""
    rows = shard.rows[item.plan.row]
    item.width, item.height = rows[0]["source_width"], rows[0]["source_height"]
    item.sha256 = rows[0]["source_sha256"]
    return any(row["output_uri"] is not None for row in rows)
