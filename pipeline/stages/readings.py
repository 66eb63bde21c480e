"""Readings: each says how a statistics stage turns images into numbers. They are picklable and travel to the actors.

`identity` is what a reading depends on, beside the model and the images.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from asyrp.diffusion.unet import Encoded
from asyrp.learning.jacobian import singular_vectors
from asyrp.learning.labels import noised_h
from asyrp.measures.clip import Clip
from asyrp.measures.interval_curves import inversion_distances
from asyrp.measures.perceptual import load_measure
from asyrp.measures.scorers import ScorerSource, load_scorer
from asyrp.models.folder import ModelFolder
from asyrp.models.load import Model
from pipeline.run.stage import BatchFunction
from pipeline.stages.editor import load_recorded_direction
from pipeline.stages.settings import DirectionSource


class Loaded(NamedTuple):
    """A model and its folder, on the device that an actor works on."""

    folder: ModelFolder
    model: Model


class Reading(Protocol):
    """Something that can be read of a batch [B, 1, 3, H, W] of images: [B, ...], float."""

    def function(self, load: Callable[[], Loaded], device: str) -> BatchFunction: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class NoisedH:
    """h [T, C, h, w] of the images noised to each timestep of `grid`; or the delta_h of a direction there."""

    grid: tuple[int, ...]
    seed: int
    direction: DirectionSource | None = None

    def function(self, load: Callable[[], Loaded], device: str) -> BatchFunction:
        folder, model = load()
        form = None
        if self.direction:
            form = load_recorded_direction(folder, self.direction.url or "", self.direction).form.to(device)

        def read(batch: Tensor, keys: Sequence[str]) -> Tensor:
            x_0 = batch[:, 0].to(device)
            return noised_h(model.unet, model.schedule, x_0, keys=keys, grid=self.grid, seed=self.seed, read=form)

        return read

    def identity(self) -> dict[str, Any]:
        return {"grid": list(self.grid), "seed": self.seed, "mean of": self.direction and self.direction.digest}


@dataclass(frozen=True)
class JacobianOfH:
    """h and the leading k singular vectors of d eps / d h, each times its value: [T, 1 + k, C, h, w].

    The vectors are zero for images whose key is not in `keys` (None: all). `mask` [H, W] holds rows of 0..1.
    """

    grid: tuple[int, ...]
    seed: int
    k: int
    keys: frozenset[str] | None
    mask: tuple[tuple[float, ...], ...] | None

    def function(self, load: Callable[[], Loaded], device: str) -> BatchFunction:
        _, model = load()
        mask = None if self.mask is None else torch.tensor(self.mask, device=device)

        def rows(encoded: Encoded, wanted: Sequence[bool]) -> Tensor:
            scaled = torch.zeros(len(wanted), self.k, *encoded.h.shape[1:], device=encoded.h.device)
            for index in range(len(wanted)):
                if wanted[index]:
                    values, vectors = singular_vectors(model.unet, encoded.item(index), self.k, mask, self.seed)
                    scaled[index] = values[:, None, None, None] * vectors
            return torch.cat([encoded.h.float()[:, None], scaled], dim=1)

        def read(batch: Tensor, keys: Sequence[str]) -> Tensor:
            # A short batch is padded with its last image, which is not to be computed more than once.
            wanted = [(self.keys is None or key in self.keys) and key not in keys[:i] for i, key in enumerate(keys)]
            return noised_h(
                model.unet,
                model.schedule,
                batch[:, 0].to(device),
                keys=keys,
                grid=self.grid,
                seed=self.seed,
                read=lambda encoded, t: rows(encoded, wanted),  # noqa: ARG005
            )

        return read

    def identity(self) -> dict[str, Any]:
        return asdict(self) | {"keys": self.keys and sorted(self.keys)}


@dataclass(frozen=True)
class InversionDistances:
    """How far the images are from their P_t and x_t, by a perceptual measure, at each timestep of `grid`: [2, T]."""

    grid: tuple[int, ...]
    measure: str

    def function(self, load: Callable[[], Loaded], device: str) -> BatchFunction:
        _, model = load()
        measure = load_measure(self.measure, device)

        def read(batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
            return inversion_distances(model.unet, model.schedule, measure, batch[:, 0].to(device), self.grid)

        return read

    def identity(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ClipEmbeddings:
    """What the image tower of a CLIP makes of the images: [D]. The model is not loaded."""

    clip: str

    def function(self, load: Callable[[], Loaded], device: str) -> BatchFunction:  # noqa: ARG002
        clip = Clip(self.clip, device)

        def read(batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
            return clip.embeddings(batch[:, 0])

        return read

    def identity(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """What scorers make of the images: [K] numbers. The model is not loaded."""

    scorers: tuple[ScorerSource, ...]

    def function(self, load: Callable[[], Loaded], device: str) -> BatchFunction:  # noqa: ARG002
        loaded = [load_scorer(source, device) for source in self.scorers]

        def read(batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
            x_0 = batch[:, 0].to(device)
            return torch.cat([scorer(x_0).cpu() for scorer in loaded], dim=1)

        return read

    def identity(self) -> dict[str, Any]:
        return {"scorers": [asdict(scorer) for scorer in self.scorers]}
