"""The arrays of an attempt, latents or statistics: one safetensors file per shard."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

LATENTS = "latents.safetensors"
STATISTICS = "statistics.safetensors"
Latents = dict[str, NDArray[np.floating]]
"""Latents [C, H, W] by their names in the file."""


def latent_name(row: int, variant: int) -> str:
    """The name of a latent in the file: `row` is its plan row, `variant` the index of its variant."""
    return f"{row}/{variant}"


def to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A safetensors file of arrays by name."""
    # safetensors writes an array's buffer as it is in memory, so a strided array would be read back scrambled.
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
