"""What a stage reads of an earlier one, a shard at a time: latents, or finished images."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.images.codec import Fit, decode
from pipeline.run.arrays import FILE_NAME, read_latents
from pipeline.run.commit import Commit, commit_digest, read_commit
from pipeline.run.manifest import OK, Row, from_bytes
from pipeline.run.sinks import read_output
from pipeline.run.stage import ImageFormat, Stage
from pipeline.storage.store import Store

Rows = Mapping[int, Sequence[Row]]
"""The rows of a manifest by the row of the plan, each with its variants in order."""


class ShardInput(Protocol):
    """What an earlier stage made of one shard."""

    rows: Rows
    digest: str

    def item(self, row: int) -> NDArray[np.float32]:
        """The outputs of one image that has any, float32 [V, C, H, W]; a variant without one is NaN.

        Raises:
            DamagedOutput: if one is not what was committed.
            OSError: if the store does not answer.
        """


class ShardLatents:
    """The latents of a shard, all in memory."""

    def __init__(self, store: Store, stage: str, commit: Commit, file: str) -> None:
        self.rows, self.digest = _rows(store, commit), commit_digest(store, stage, commit.shard)
        self.latents = read_latents(store, file)

    def item(self, row: int) -> NDArray[np.float32]:
        names = [r["output_member"] for r in self.rows[row]]
        return _stacked([None if name is None else self.latents[name].astype(np.float32) for name in names])


class ShardImages:
    """The finished images of a shard, read one by one."""

    def __init__(self, store: Store, stage: str, commit: Commit, size: int, fit: Fit) -> None:
        self.rows, self.digest = _rows(store, commit), commit_digest(store, stage, commit.shard)
        self.store, self.size, self.fit = store, size, fit

    def item(self, row: int) -> NDArray[np.float32]:
        return _stacked([self._image(r) if r["status"] == OK else None for r in self.rows[row]])

    def _image(self, row: Row) -> NDArray[np.float32]:
        return decode(read_output(self.store, row), self.size, self.fit).pixels


def read_input(store: Store, stage: Stage, shard: int, image_format: ImageFormat) -> ShardInput | None:
    """What `stage` reads for a shard; None for a stage that reads source images."""
    if stage.reads is None:
        return None
    store = Store(stage.input_root) if stage.input_root else store
    commit = read_commit(store, stage.reads, shard)
    latents = [file.path for file in commit.files if file.path.endswith(FILE_NAME)]
    if latents:
        return ShardLatents(store, stage.reads, commit, latents[0])
    return ShardImages(store, stage.reads, commit, image_format.size, image_format.fit)


def _rows(store: Store, commit: Commit) -> Rows:
    rows: dict[int, list[Row]] = {}
    for row in from_bytes(store.read(commit.manifest)):
        rows.setdefault(row["row"], []).append(row)
    return rows


def _stacked(outputs: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32]:
    shape = next(output.shape for output in outputs if output is not None)
    return np.stack([np.full(shape, np.nan, np.float32) if output is None else output for output in outputs])
