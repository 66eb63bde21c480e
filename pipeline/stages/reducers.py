"""What the shards of a statistics stage add up to: one small class for each kind of sum.

A reducer is made anew for every shard. What makes it is picklable and travels to the actors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asyrp.learning.jacobian import JacobianSums
from asyrp.learning.labels import LabelSums
from asyrp.learning.pca import PcaSketch
from asyrp.measures.image_sets import FeatureSums
from asyrp.measures.interval_curves import CurveSums
from pipeline.run.plan import hash64
from pipeline.run.stage import Reducer

KEYS = "keys"


@dataclass(frozen=True)
class MakeLabelReducer:
    """Label sums of images whose labels [K] are known by key; with n_labels 0, their mean."""

    n_labels: int
    labels: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __call__(self) -> Reducer:
        return LabelReducer(self)


class LabelReducer:
    """A shard's label sums."""

    def __init__(self, made_by: MakeLabelReducer) -> None:
        self.labels, self.n_labels, self.sums = made_by.labels, made_by.n_labels, LabelSums(made_by.n_labels)

    def add(self, key: str, output: NDArray[np.float32]) -> None:
        labels = torch.tensor([self.labels[key]]) if self.n_labels else torch.zeros(1, 0)
        self.sums.add(labels, torch.from_numpy(output)[None])

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self.sums.tensors().items()}


@dataclass(frozen=True)
class MakePcaReducer:
    """A PCA sketch per timestep, or a single one over all timesteps jointly."""

    rank: int
    joint: bool

    def __call__(self) -> Reducer:
        return PcaReducer(self)


class PcaReducer:
    """A shard's PCA sketch."""

    def __init__(self, made_by: MakePcaReducer) -> None:
        self.joint, self.sketch = made_by.joint, PcaSketch(made_by.rank)

    def add(self, key: str, output: NDArray[np.float32]) -> None:  # noqa: ARG002
        groups = 1 if self.joint else len(output)
        self.sketch.add(torch.from_numpy(output).reshape(1, groups, -1))

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self.sketch.tensors().items()}


class JacobianReducer:
    """What a shard's Jacobians have in common."""

    def __init__(self) -> None:
        self.sums = JacobianSums()

    def add(self, key: str, output: NDArray[np.float32]) -> None:  # noqa: ARG002
        both = torch.from_numpy(output)  # [T, 1 + k, C, h, w]
        self.sums.add(both[:, 0], both[:, 1:])

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self.sums.tensors().items()}


class CurveReducer:
    """A shard's sums of distances."""

    def __init__(self) -> None:
        self.sums = CurveSums()

    def add(self, key: str, output: NDArray[np.float32]) -> None:  # noqa: ARG002
        self.sums.add(torch.from_numpy(output))

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self.sums.tensors().items()}


class FeatureReducer:
    """A shard's sums of features; which are kept is decided by key."""

    def __init__(self) -> None:
        self.ranks: list[int] = []
        self.rows: list[torch.Tensor] = []

    def add(self, key: str, output: NDArray[np.float32]) -> None:
        self.ranks.append(hash64(key) >> 1)  # as int64
        self.rows.append(torch.from_numpy(output))

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        if not self.rows:
            return {}
        sums = FeatureSums.of(torch.stack(self.rows), torch.tensor(self.ranks))
        return {name: tensor.numpy() for name, tensor in sums.tensors().items()}


class RowReducer:
    """A shard's outputs as they are, in `dtype`, with their keys: for what does not add up."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.keys: list[str] = []
        self.rows: list[NDArray[Any]] = []

    def add(self, key: str, output: NDArray[np.float32]) -> None:
        self.keys.append(key)
        self.rows.append(output.astype(self.dtype))

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        if not self.rows:
            return {}
        return {KEYS: encode_keys(self.keys), "rows": np.stack(self.rows)}


def half_rows() -> Reducer:
    """Rows of h in half precision."""
    return RowReducer(np.float16)


def score_rows() -> Reducer:
    """Rows of scores."""
    return RowReducer(np.float32)


def encode_keys(keys: Sequence[str]) -> NDArray[np.uint8]:
    """Keys as bytes: a safetensors file holds numbers only. No path holds a NUL."""
    return np.frombuffer("\0".join(keys).encode(), dtype=np.uint8)


def decode_keys(array: NDArray[np.uint8]) -> list[str]:
    return array.tobytes().decode().split("\0")
