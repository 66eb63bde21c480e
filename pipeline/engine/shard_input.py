"""Reads the results of an earlier stage, a shard at a time: latents or finished images."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from pipeline.images.codec import Fit, decode
from pipeline.images.statuses import OK
from pipeline.run.arrays import LATENTS
from pipeline.run.commit import Commit, commit_digest, read_commit, read_committed, read_manifest
from pipeline.run.manifest import Row, from_bytes
from pipeline.run.sinks import DamagedOutput, read_output
from pipeline.run.stage import ImageFormat, Stage
from pipeline.storage.store import Store

Rows = Mapping[int, Sequence[Row]]
"""Manifest rows by plan row: for each image its rows, in the order of the variants."""


class ShardInput(Protocol):
    """The results of an earlier stage for one shard. `digest` is that of their commit."""

    rows: Rows
    digest: str

    def outputs(self, row: int) -> NDArray[np.float32]:
        """The outputs of an image, float32 [V, C, H, W], where a variant without an output is NaN.

        `row` is the image's plan row. At least one of its variants must have an output.

        Raises:
            DamagedOutput: if an output is not what was committed.
            OSError: if the store does not answer.
        """


class ShardLatents:
    """The latents of a shard, all of them in memory.

    Raises:
        DamagedOutput: if they are not those that the manifest names, all of one shape.
    """

    def __init__(self, store: Store, stage: str, commit: Commit, file: str) -> None:
        self.rows, self.digest = _rows(store, commit), commit_digest(store, stage, commit.shard)
        self.latents = load(read_committed(store, commit, file))
        named = {row["output_member"] for rows in self.rows.values() for row in rows} - {None}
        if not named <= self.latents.keys() or len({latent.shape for latent in self.latents.values()}) > 1:
            raise DamagedOutput(
                f"{file} at {store.url} does not hold the latents that its manifest names, all of one shape: it was "
                "changed by somebody, so invert again"
            )

    def outputs(self, row: int) -> NDArray[np.float32]:
        names = [r["output_member"] for r in self.rows[row]]
        return _stacked([None if name is None else self.latents[name].astype(np.float32) for name in names])


class ShardImages:
    """The finished images of a shard, which are read one by one."""

    def __init__(self, store: Store, stage: str, commit: Commit, size: int, fit: Fit) -> None:
        self.rows, self.digest = _rows(store, commit), commit_digest(store, stage, commit.shard)
        self.store, self.size, self.fit = store, size, fit

    def outputs(self, row: int) -> NDArray[np.float32]:
        return _stacked([self._image(r) if r["status"] == OK else None for r in self.rows[row]])

    def _image(self, row: Row) -> NDArray[np.float32]:
        return decode(read_output(self.store, row), self.size, self.fit).pixels


def read_input(store: Store, stage: Stage, shard: int, image_format: ImageFormat) -> ShardInput | None:
    """The input of a stage for a shard; None if the stage reads source images.

    Raises:
        FileNotFoundError: if the input stage has not committed the shard.
        DamagedCommit: if its manifest or latents are missing, or not what was committed.
    """
    if stage.reads is None:
        return None
    store = Store(stage.input_root) if stage.input_root else store
    commit = read_commit(store, stage.reads, shard)
    latents = [file.path for file in commit.files if file.path.endswith(LATENTS)]
    if latents:
        return ShardLatents(store, stage.reads, commit, latents[0])
    return ShardImages(store, stage.reads, commit, image_format.size, image_format.fit)


def _rows(store: Store, commit: Commit) -> Rows:
    rows: dict[int, list[Row]] = {}
    for row in from_bytes(read_manifest(store, commit)):
        rows.setdefault(row["row"], []).append(row)
    return rows


def _stacked(outputs: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32]:
    shape = next(output.shape for output in outputs if output is not None)
    return np.stack([np.full(shape, np.nan, np.float32) if output is None else output for output in outputs])
