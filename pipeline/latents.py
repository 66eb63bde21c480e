"""The latents of an attempt, one safetensors file per shard, and reading them back for the next stage."""

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pipeline import manifest
from pipeline.commit import commit_digest, read_commit
from pipeline.stage import Stage
from pipeline.storage import Store

FILE_NAME = "latents.safetensors"
Latents = dict[str, NDArray[np.floating]]


def member(row: int, variant: int) -> str:
    """The name of one latent [C, H, W] in the file."""
    return f"{row}/{variant}"


def to_bytes(latents: Latents) -> bytes:
    # safetensors writes the buffer as it lies in memory: a strided array would come back scrambled.
    return save({name: np.ascontiguousarray(latent) for name, latent in latents.items()})


class ShardLatents:
    """What an earlier stage made of one shard: the rows of its manifest and its latents."""

    def __init__(self, store: Store, stage: str, shard: int) -> None:
        commit = read_commit(store, stage, shard)
        self.digest = commit_digest(store, stage, shard)
        self.rows: dict[int, list[manifest.Row]] = {}
        for row in manifest.from_bytes(store.read(commit.manifest)):
            self.rows.setdefault(row["row"], []).append(row)
        files = [file.path for file in commit.files if file.path.endswith(FILE_NAME)]
        self.latents: Latents = load(store.read(files[0])) if files else {}

    def item(self, row: int) -> NDArray[np.float32]:
        """The latents of one image, float32 [V, C, H, W]; a variant that failed is NaN."""
        names = [r["output_member"] for r in self.rows[row]]
        shape = next(iter(self.latents.values())).shape
        missing = np.full(shape, np.nan, np.float32)
        return np.stack([missing if n is None else self.latents[n].astype(np.float32) for n in names])


def read_input(store: Store, stage: Stage, shard: int) -> ShardLatents | None:
    """The latents that `stage` reads for a shard; None for a stage that reads source images."""
    if stage.reads is None:
        return None
    return ShardLatents(Store(stage.input_root) if stage.input_root else store, stage.reads, shard)
