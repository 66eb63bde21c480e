"""The values that all ways of learning from h over a cluster need."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asyrp.diffusion.moves import inside
from asyrp.diffusion.schedule import timesteps
from asyrp.directions.forms import TimestepDirection
from asyrp.directions.info import DirectionInfo
from asyrp.models.folder import ModelFolder
from asyrp.models.scheduler import read_scheduler
from jobs.learn.collect import Collection, MakeReducer
from jobs.spec.run import EngineSpec
from pipeline.stages.readings import Reading

T_EDIT = 400
"""The last edited timestep where nothing else says it."""


@dataclass(frozen=True)
class LearnRequest:
    """The values that all ways of learning from h need.

    `work` is a root that keeps the sums, to continue after a stop. Without `t_edit`, labels find the interval by
    themselves, and the other ways take T_EDIT.
    """

    source: str
    model: str
    output: Path
    n_steps: int = 40
    t_edit: int | None = None
    t_start: int | None = None
    t_boost: int | None = None
    scale: float = 1.0
    seed: int = 0
    work: str | None = None
    shard_size: int = 256
    engine: EngineSpec = field(default_factory=EngineSpec)  # type: ignore[arg-type]

    def collection(
        self, folder: ModelFolder, reading: Reading, make_reducer: MakeReducer, identity: dict[str, Any]
    ) -> Collection:
        """Returns the statistics to collect, over all images."""
        return Collection(
            source=self.source,
            folder=folder,
            reading=reading,
            make_reducer=make_reducer,
            identity=identity,
            shard_size=self.shard_size,
            work=self.work,
            engine=self.engine,
        )

    def grid(self, folder: ModelFolder) -> tuple[int, ...]:
        """Returns the generation timesteps that are edited."""
        return edited_timesteps(folder, self.n_steps, self.t_start, self.last_edited)

    @property
    def last_edited(self) -> int:
        return T_EDIT if self.t_edit is None else self.t_edit

    def some_of_grid(self, folder: ModelFolder, count: int) -> tuple[int, ...]:
        """Returns up to `count` timesteps, spread evenly over the grid. A single one is in the middle."""
        whole = self.grid(folder)
        last = len(whole) - 1
        places = [last / 2] if count == 1 else np.linspace(0, last, count)
        return tuple(sorted({whole[round(place)] for place in places}))

    def info(self, folder: ModelFolder, name: str, images: int, unit: str, found_by: str) -> DirectionInfo:
        """Returns the metadata of a direction found on `images` images. `unit` describes its step before `scale`."""
        return DirectionInfo(
            name=name,
            form="timestep",
            model_digest=folder.digest,
            n_steps=self.n_steps,
            t_edit=self.last_edited,
            t_start=self.t_start,
            t_boost=self.t_boost,
            unit=unit if self.scale == 1 else f"{self.scale:g} times {unit}",
            found_by=found_by,
            found_on=f"{images} images",
        )

    def form(self, delta_h: Tensor, grid: tuple[int, ...], folder: ModelFolder) -> TimestepDirection:
        """Returns a direction of one step per timestep, in half precision. `delta_h` is [T, C, h, w] or flattened."""
        return TimestepDirection((self.scale * delta_h).reshape(len(grid), *folder.h_shape).half(), torch.tensor(grid))


def edited_timesteps(folder: ModelFolder, n_steps: int, t_start: int | None, t_edit: int) -> tuple[int, ...]:
    """Returns the timesteps of a generation in `n_steps` steps that lie in an editing interval."""
    grid = timesteps(n_steps, read_scheduler(folder.scheduler).t_0)
    return tuple(t for t in grid if inside(t, t_start, t_edit))
