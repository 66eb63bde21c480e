"""How a statistics stage adds up the outputs of a shard.

A stage gets a factory of reducers, which travels to the actors and is therefore picklable. Every shard gets a new
reducer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyrp.learning.jacobian import JacobianSums
from asyrp.learning.labels import LabelSums
from asyrp.learning.pca import PcaSketch
from asyrp.measures.image_sets import FeatureSums
from asyrp.measures.interval_curves import CurveSums
from asyrp.mergeable import Sums, merge_stored
from pipeline.run.name_check import hash64
from pipeline.run.stage import Reducer

KEYS = "keys"


@dataclass(frozen=True)
class Aggregation(Generic[Sums]):
    """How images are added up: `empty` makes sums over no images, `add` adds the output of one image, given its key.

    A call makes the reducer of one shard.
    """

    empty: Callable[[], Sums]
    add: Callable[[Sums, str, Tensor], None]

    def __call__(self) -> Reducer:
        return SumsReducer(self)

    def merge(self, shards: Iterable[Mapping[str, Tensor]]) -> Sums:
        """The sums over all shards, given what the reducer of each has stored."""
        return merge_stored(self.empty, shards)


class SumsReducer(Generic[Sums]):
    """The sums over one shard."""

    def __init__(self, aggregation: Aggregation[Sums]) -> None:
        self._sums, self._add = aggregation.empty(), aggregation.add

    def add(self, key: str, output: NDArray[np.float32]) -> None:
        self._add(self._sums, key, torch.from_numpy(output))

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self._sums.tensors().items()}


def label_sums(n_labels: int, labels: Mapping[str, Sequence[float]]) -> Aggregation[LabelSums]:
    """Regression sums of h [T, C, h, w] on the labels [n_labels] that images have by key."""

    return Aggregation(partial(LabelSums, n_labels), partial(_add_labelled, labels))


def _add_labelled(labels: Mapping[str, Sequence[float]], sums: LabelSums, key: str, h: Tensor) -> None:
    sums.add(torch.tensor([labels[key]]), h[None])


def mean_sums() -> Aggregation[LabelSums]:
    """Sums of h [T, C, h, w] for its mean over images: a regression on no label."""
    return Aggregation(partial(LabelSums, 0), _add_unlabelled)


def _add_unlabelled(sums: LabelSums, key: str, h: Tensor) -> None:  # noqa: ARG001
    sums.add(torch.zeros(1, 0), h[None])


def pca_sketches(rank: int, joint: bool) -> Aggregation[PcaSketch]:
    """PCA sketches of h [T, C, h, w], one for each timestep, or with `joint` one for all timesteps together."""
    return Aggregation(partial(PcaSketch, rank), partial(_add_to_sketch, joint))


def _add_to_sketch(joint: bool, sketch: PcaSketch, key: str, h: Tensor) -> None:  # noqa: ARG001
    sketch.add(h.reshape(1, 1 if joint else len(h), -1))


def _add_jacobians(sums: JacobianSums, key: str, h_and_rows: Tensor) -> None:  # noqa: ARG001
    sums.add(h_and_rows[:, 0], h_and_rows[:, 1:])


JACOBIAN_SUMS = Aggregation(JacobianSums, _add_jacobians)
"""Sums of h with the leading rows of its Jacobians [T, 1 + k, C, h, w]."""


def _add_distances(sums: CurveSums, key: str, distances: Tensor) -> None:  # noqa: ARG001
    sums.add(distances)


CURVE_SUMS = Aggregation(CurveSums, _add_distances)
"""Sums of distances [2, T]."""


def _add_features(sums: FeatureSums, key: str, features: Tensor) -> None:
    sums.add(features[None], torch.tensor([hash64(key) >> 1]))  # as int64


FEATURE_SUMS = Aggregation(FeatureSums, _add_features)
"""Sums of features [D]; the key decides whose features are kept."""


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
