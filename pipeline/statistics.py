"""Statistics of h over a data set: the stage that collects them, and what its shards add up to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from asyrp import models
from asyrp.errors import UserError
from asyrp.labels import LabelSums, noised_h
from asyrp.pca import PcaSketch
from pipeline.commit import committed, read_commit
from pipeline.model_source import find_model
from pipeline.recipe import DirectionSource
from pipeline.shard_job import STATISTICS
from pipeline.stage import Reducer, Stage, Variant
from pipeline.stages import load_direction, self_check
from pipeline.storage import Store

STAGE, NEW_REDUCER = "statistics", "new_reducer"


@dataclass(frozen=True)
class CollectSettings:
    """What h depends on. Picklable: it travels to the actors, which load the rest."""

    model: str
    model_digest: str
    grid: tuple[int, ...]
    seed: int
    check: bool
    make_reducer: Callable[[], Reducer]
    direction: DirectionSource | None = None  # if given, its delta_h is collected in place of h
    device: str = "cpu"

    def __call__(self) -> Mapping[str, Callable[..., Any]]:
        """Load the frozen net; the functions of the stage."""
        folder = find_model(self.model)
        if folder.digest != self.model_digest:
            raise UserError(f"model {self.model} has other weights here ({folder.unet}) than where the run began")
        model = models.load(folder, self.device)
        if self.check:
            self_check(model, folder).refuse_a_failure(self.model)

        form = None
        if self.direction:
            form = load_direction(folder, self.direction.url or "", self.direction).form.to(self.device)

        def h_of_images(batch: Tensor, keys: Sequence[str]) -> Tensor:
            x_0 = batch[:, 0].to(self.device)
            return noised_h(model.unet, model.schedule, x_0, keys, self.grid, self.seed, form)

        return {h_of_images.__name__: h_of_images, NEW_REDUCER: self.make_reducer}


def statistics_stage(settings: CollectSettings) -> Stage:
    """The stage whose shards hold what the reducer makes of their images' h."""
    columns = {"model_digest": settings.model_digest, "seed": settings.seed}
    return Stage(STAGE, "h_of_images", None, "statistics", (Variant(),), columns, new_reducer=NEW_REDUCER)


@dataclass(frozen=True)
class MakeLabelReducer:
    """Label sums, for images whose labels [K] are known by key."""

    labels: Mapping[str, Sequence[float]]
    n_labels: int

    def __call__(self) -> Reducer:
        return LabelReducer(self)


class LabelReducer:
    """A shard's label sums."""

    def __init__(self, made_by: MakeLabelReducer) -> None:
        self.labels, self.sums = made_by.labels, LabelSums(made_by.n_labels)

    def add(self, key: str, output: NDArray[Any]) -> None:
        self.sums.add(torch.tensor([self.labels[key]]), torch.from_numpy(output)[None])

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self.sums.tensors().items()}


@dataclass(frozen=True)
class MakeMeanReducer:
    """The mean over images, as label sums without labels."""

    def __call__(self) -> Reducer:
        return MeanReducer()


class MeanReducer:
    """A shard's mean."""

    def __init__(self) -> None:
        self.sums = LabelSums(0)

    def add(self, key: str, output: NDArray[Any]) -> None:  # noqa: ARG002
        self.sums.add(torch.zeros(1, 0), torch.from_numpy(output)[None])

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

    def add(self, key: str, output: NDArray[Any]) -> None:  # noqa: ARG002
        groups = 1 if self.joint else len(output)
        self.sketch.add(torch.from_numpy(output).reshape(1, groups, -1))

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self.sketch.tensors().items()}


def read_statistics(store: Store) -> Iterator[dict[str, Tensor]]:
    """What each committed shard added up to, in the order of the shards: the same from however many actors."""
    for shard in sorted(committed(store, STAGE)):
        commit = read_commit(store, STAGE, shard)
        [file] = [entry.path for entry in commit.files if entry.path.endswith(STATISTICS)]
        yield load(store.read(file))
