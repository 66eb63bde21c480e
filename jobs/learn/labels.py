"""`asyrp directions learn labels`: directions from labels, and the request that all ways of learning from h share."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asyrp.diffusion.moves import inside
from asyrp.diffusion.schedule import timesteps
from asyrp.directions.forms import Direction, TimestepDirection, save_direction
from asyrp.directions.info import DirectionInfo, check_model, file_digest, read_info
from asyrp.errors import UserError
from asyrp.learning.labels import LabelStatistics, label_step
from asyrp.models.folder import ModelFolder
from asyrp.models.scheduler import read_scheduler
from jobs.learn.collect import Collection, MakeReducer, collect
from jobs.spec.run import EngineSpec
from pipeline.sources.labels import find_labels
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import NoisedH, Reading
from pipeline.stages.reducers import label_sums, mean_sums
from pipeline.stages.settings import DirectionSource


@dataclass(frozen=True)
class LearnRequest:
    """The values that all ways of learning from h need.

    `work` is a root that keeps the sums, to continue after a stop.
    """

    source: str
    model: str
    output: Path
    n_steps: int = 40
    t_edit: int = 400
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
        return tuple(t for t in _timesteps(folder, self.n_steps) if t >= self.t_edit)

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
            t_edit=self.t_edit,
            t_boost=self.t_boost,
            unit=unit if self.scale == 1 else f"{self.scale:g} times {unit}",
            found_by=found_by,
            found_on=f"{images} images",
        )

    def form(self, delta_h: Tensor, grid: tuple[int, ...], folder: ModelFolder) -> TimestepDirection:
        """Returns a direction of one step per timestep, in half precision. `delta_h` is [T, C, h, w] or flattened."""
        return TimestepDirection((self.scale * delta_h).reshape(len(grid), *folder.h_shape).half(), torch.tensor(grid))


@dataclass(frozen=True)
class LabelQuestion:
    """The labels `names` to learn from the table `labels` (or `folders`).

    The labels `hold` are held fixed (None: all columns). `extremes` needs a single name. Only the images with the most
    and the least of that label are then used, and `extremes` is the share of the images on each side.
    """

    labels: str
    names: tuple[str, ...]
    hold: tuple[str, ...] | None = None
    extremes: float | None = None


def learn_labels(request: LearnRequest, asked: LabelQuestion) -> list[Path]:
    """Learn and save the directions of labels. Returns their paths.

    Each direction is found with the other labels held fixed. Strength 1 is `scale` steps. The step of a binary label
    goes from one value to the other. The step of any other label goes between the means of the halves of the images.

    Raises:
        UserError: if the table does not fit the images, or a label cannot be told from the others.
    """
    folder = fetch_model(request.model)
    table = find_labels(asked.labels, request.source, asked.names)
    if asked.hold is not None:
        table = table.only(tuple(dict.fromkeys((*asked.names, *asked.hold))))
    if asked.extremes is not None:
        if len(asked.names) != 1:
            raise UserError("--extremes divides the images by one label: give one --name")
        table = table.extremes(asked.names[0], asked.extremes)
    labels = dict(zip(table.keys, table.rows.tolist(), strict=True))
    aggregation = label_sums(len(table.columns), labels)
    reading = NoisedH(request.grid(folder), request.seed)
    identity = {"columns": list(table.columns), "labels": table.digest()}
    collection = replace(request.collection(folder, reading, aggregation, identity), keys=labels.keys())
    sums, images = collect(collection, aggregation.merge)
    try:
        coefficients, statistics = sums.directions(), sums.statistics()
    except ValueError as error:
        raise UserError(f"{table.origin}: {error}") from error
    paths = []
    for name in asked.names:
        index = table.columns.index(name)
        unit = f"the change of h from without to with '{name}'"
        found_by = f"h of noised images regressed on {len(table.columns)} labels: {', '.join(table.columns)}"
        info = replace(request.info(folder, name, images, unit, found_by), notes=_notes(statistics[index]))
        step = label_step(table.column(name).tolist())
        form = request.form(step * coefficients[index], request.grid(folder), folder)
        paths.append(request.output / f"{name}.safetensors" if len(asked.names) > 1 else request.output)
        save_direction(Direction(info, form), paths[-1])
    return paths


def _notes(statistics: LabelStatistics) -> dict[str, str]:
    """Returns the range of each statistic over the grid, in words."""
    return {
        "effect": f"{statistics.effect.min():.3f} to {statistics.effect.max():.3f} standard deviations of h",
        "t_value": f"{statistics.t_value.min():.2f} to {statistics.t_value.max():.2f} (1 is chance)",
    }


def _timesteps(folder: ModelFolder, n_steps: int) -> list[int]:
    return timesteps(n_steps, read_scheduler(folder.scheduler).t_0)


def average_over_images(request: LearnRequest, direction: Path) -> Direction:
    """Returns delta_h^mean of the paper, the mean of an implicit direction f_t(h_t, t) over images, per timestep.

    h_t is the bottleneck of the noised images.

    Raises:
        UserError: if the direction belongs to another model, or suggests no t_edit.
    """
    folder, info = fetch_model(request.model), read_info(direction)
    check_model(info, folder.digest, request.model)
    if info.t_edit is None:
        raise UserError(f"direction '{info.name}' suggests no t_edit, so it is not known where to average it")
    grid = tuple(t for t in _timesteps(folder, info.n_steps) if inside(t, info.t_start, info.t_edit))
    source = DirectionSource(str(direction.absolute()), file_digest(direction))
    reading = NoisedH(grid, request.seed, source)
    aggregation = mean_sums()
    sums, images = collect(request.collection(folder, reading, aggregation, {}), aggregation.merge)
    notes = info.notes | {"averaged over": f"{images} images"}
    form = TimestepDirection(sums.mean(), torch.tensor(grid))
    return Direction(replace(info, form="timestep", notes=notes), form)
