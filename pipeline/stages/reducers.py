"""How a statistics stage adds up the outputs of a shard.

A stage gets a factory of reducers, which travels to the actors and is therefore picklable. Every shard gets a new
reducer.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
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
from asyrp.learning.probe import Probe
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


class PropagatedSums:
    """Regression sums of images with `labelled` labels, and of `others` whose labels come from probes."""

    def __init__(self, n_labels: int, n_probes: int) -> None:
        self.labelled, self.others = LabelSums(n_labels), LabelSums(n_probes)

    def merge(self, other: "PropagatedSums") -> None:
        self.labelled.merge(other.labelled)
        self.others.merge(other.others)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": tensor for part in PARTS for name, tensor in getattr(self, part).tensors().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for part in PARTS:
            own = {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(part)}
            getattr(self, part).load(own)


PARTS = ("labelled", "others")


def propagated_sums(
    n_labels: int, labels: Mapping[str, Sequence[float]], probes: Sequence[Probe]
) -> Aggregation[PropagatedSums]:
    """Regression sums of h [1 + T, C, h, w]. The first h of an image without labels is the one that probes read."""
    return Aggregation(partial(PropagatedSums, n_labels, len(probes)), partial(_add_propagated, labels, tuple(probes)))


def _add_propagated(
    labels: Mapping[str, Sequence[float]], probes: Sequence[Probe], sums: PropagatedSums, key: str, h: Tensor
) -> None:
    if key in labels:
        sums.labelled.add(torch.tensor([labels[key]]), h[None, 1:])
    else:
        first = h[0].flatten()
        sums.others.add(torch.tensor([[probe.read(first) for probe in probes]]), h[None, 1:])


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


class SketchAndRows:
    """A PCA sketch of h at one timestep over all images, and the rows of h of those with labels, with their keys."""

    def __init__(self, rank: int, labelled: Container[str]) -> None:
        self.labelled = labelled
        self.sketch, self.rows = PcaSketch(rank), RowReducer(np.float16)

    def add(self, key: str, output: NDArray[np.float32]) -> None:
        self.sketch.add(torch.from_numpy(output).reshape(1, 1, -1))
        if key in self.labelled:
            self.rows.add(key, output.reshape(-1))

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        sketch = {f"{SKETCH}{name}": tensor.numpy() for name, tensor in self.sketch.tensors().items()}
        return {**sketch, **self.rows.arrays()}


SKETCH = "sketch."


def sketch_and_rows(rank: int, labelled: Container[str]) -> Callable[[], Reducer]:
    """A sketch of all images, and rows of h in half precision of those whose keys are `labelled`."""
    return partial(SketchAndRows, rank, labelled)


def merged_sketch(rank: int, shards: Iterable[Mapping[str, Tensor]]) -> PcaSketch:
    """The sketch of all images, given what the shards of `sketch_and_rows` have stored."""
    stored = ({n.removeprefix(SKETCH): t for n, t in shard.items() if n.startswith(SKETCH)} for shard in shards)
    return merge_stored(partial(PcaSketch, rank), stored)


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
