"""The latents of an attempt: one safetensors file per shard."""

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pipeline.storage.store import Store

FILE_NAME = "latents.safetensors"
Latents = dict[str, NDArray[np.floating]]


def member(row: int, variant: int) -> str:
    """The name of one latent [C, H, W] in the file."""
    return f"{row}/{variant}"


def to_bytes(latents: Latents) -> bytes:
    # safetensors writes the buffer as it lies in memory: a strided array would come back scrambled.
    return save({name: np.ascontiguousarray(latent) for name, latent in latents.items()})


def read_latents(store: Store, file: str) -> Latents:
    return load(store.read(file))


STATISTICS = "statistics.safetensors"
