"""`asyrp directions learn`: directions from images, with labels or without."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import torch

from asyrp import directions
from asyrp.direction_info import DirectionInfo, check_model, file_digest, read_info
from asyrp.directions import TimestepDirection
from asyrp.errors import UserError
from asyrp.labels import LabelStatistics, LabelSums
from asyrp.pca import PcaSketch
from asyrp.registry import ModelFolder
from asyrp.schedule import timesteps
from jobs.collect import Collection, MakeReducer, collect
from jobs.spec import EngineSpec
from pipeline.model_source import find_model
from pipeline.recipe import DirectionSource
from pipeline.sources import list_images
from pipeline.statistics import MakeLabelReducer, MakeMeanReducer, MakePcaReducer
from pipeline.storage import open_filesystem

KEY = "key"
FOLDERS = "folders"
"""In place of a table of labels: an image's label is the folder it is in."""


@dataclass(frozen=True)
class LearnRequest:
    """What every way of learning needs. `work` is a root that keeps the sums, to go on after a stop."""

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

    def collection(self, folder: ModelFolder, make_reducer: MakeReducer, identity: dict[str, Any]) -> Collection:
        """What is to be collected, of all images at all timesteps of the grid."""
        return Collection(
            source=self.source,
            folder=folder,
            grid=self.grid(),
            make_reducer=make_reducer,
            identity=identity,
            seed=self.seed,
            shard_size=self.shard_size,
            work=self.work,
            engine=self.engine,
        )

    def grid(self) -> tuple[int, ...]:
        """The generation timesteps that are edited."""
        return tuple(t for t in timesteps(self.n_steps) if t >= self.t_edit)

    def info(self, folder: ModelFolder, name: str, images: int, unit: str, found_by: str) -> DirectionInfo:
        """The metadata of a direction of one tensor per timestep, found on so many images."""
        return DirectionInfo(
            name=name,
            form="timestep",
            model_digest=folder.digest,
            n_steps=self.n_steps,
            t_edit=self.t_edit,
            t_boost=self.t_boost,
            unit=unit,
            found_by=found_by,
            found_on=f"{images} images",
        )


def learn_labels(request: LearnRequest, labels: str, names: tuple[str, ...]) -> list[Path]:
    """Learn and save the directions `names` from the columns of the table `labels`, or from the folders of the source.

    All numeric columns take part in the regression, so that each direction is found with the others held fixed.
    Strength 1 is `scale` times the change of h per unit of the label.

    Raises:
        UserError: if the table does not fit the images, or a label cannot be told from the others.
    """
    folder = find_model(request.model)
    columns, table = folder_labels(request.source, names) if labels == FOLDERS else read_labels(labels)
    for name in names:
        if name not in columns:
            raise UserError(f"{labels} has no numeric column '{name}': it has {', '.join(columns)}")
    if not any(image.key in table for image in list_images(request.source)):
        raise UserError(f"none of the images below {request.source} is in {labels}: its column '{KEY}' "
                        "must hold their paths relative to the source")  # fmt: skip
    identity = {"columns": columns, "labels": _digest(table)}
    reducer = MakeLabelReducer({key: row.tolist() for key, row in table.items()}, len(columns))
    collection = replace(request.collection(folder, reducer, identity), keys=table.keys())
    sums, images = collect(collection, _merge_label_sums)
    try:
        coefficients, statistics = sums.directions(), sums.statistics()
    except ValueError as error:
        raise UserError(f"{labels}: {error}") from error
    paths = []
    for name in names:
        index = columns.index(name)
        unit = f"{request.scale:g} times the change of h per unit of the label '{name}'"
        found_by = f"h of noised images regressed on {len(columns)} labels: {', '.join(columns)}"
        info = replace(request.info(folder, name, images, unit, found_by), notes=_notes(statistics[index]))
        form = TimestepDirection((request.scale * coefficients[index]).half(), torch.tensor(request.grid()))
        paths.append(request.output / f"{name}.safetensors" if len(names) > 1 else request.output)
        directions.save(directions.Direction(info, form), paths[-1])
    return paths


def _merge_label_sums(shards: Iterator[dict[str, torch.Tensor]]) -> LabelSums:
    merged = LabelSums.from_tensors(next(shards))
    for tensors in shards:
        merged.merge(LabelSums.from_tensors(tensors))
    return merged


def _notes(statistics: LabelStatistics) -> dict[str, str]:
    """The range of the statistics over the grid."""
    return {
        "effect": f"{statistics.effect.min():.3f} to {statistics.effect.max():.3f} standard deviations of h",
        "t_value": f"{statistics.t_value.min():.2f} to {statistics.t_value.max():.2f} (1 is chance)",
    }


def average_over_images(request: LearnRequest, direction: Path) -> directions.Direction:
    """delta_h^mean of the paper: the mean of an implicit direction f_t(h_t, t) over images, per timestep.

    h_t is that of the noised images. Raises UserError for a direction of another model, or without an interval.
    """
    folder, info = find_model(request.model), read_info(direction)
    check_model(info, folder.digest, request.model)
    if info.t_edit is None:
        raise UserError(f"direction '{info.name}' suggests no t_edit, so it is not known where to average it")
    grid = tuple(t for t in timesteps(info.n_steps) if t >= info.t_edit)
    source = DirectionSource(str(direction.absolute()), file_digest(direction))
    collection = request.collection(folder, MakeMeanReducer(), {"mean of direction": source.digest})
    sums, images = collect(replace(collection, grid=grid, direction=source), _merge_label_sums)
    notes = info.notes | {"averaged over": f"{images} images"}
    form = TimestepDirection(sums.mean(), torch.tensor(grid))
    return directions.Direction(replace(info, form="timestep", notes=notes), form)


def learn_pca(request: LearnRequest, components: int, joint: bool, rank: int, n_timesteps: int) -> list[Path]:
    """Learn and save the leading principal components of h as directions pc01, pc02, ...; `output` is a folder.

    Strength 1 is `scale` standard deviations of the images along the component. `joint`: one analysis of h at all
    timesteps together, else one per timestep with signs aligned. h is read at `n_timesteps` of the grid.

    Raises:
        UserError: if there are fewer images or sketch rows than components.
    """
    folder = find_model(request.model)
    whole = request.grid()
    grid = tuple(sorted({whole[round(i)] for i in np.linspace(0, len(whole) - 1, n_timesteps)}))
    identity = {"rank": rank, "joint": joint, "statistics": "pca"}
    collection = replace(request.collection(folder, MakePcaReducer(rank, joint), identity), grid=grid)
    sketch, images = collect(collection, partial(_merge_sketches, rank=rank))
    try:
        rows, shares = sketch.components(components)
    except ValueError as error:
        raise UserError(
            f"{request.source}: {error}; give more images, a larger --rank, or fewer --components"
        ) from error
    paths = []
    how = "jointly over time" if joint else "per timestep"
    for number, (row, share) in enumerate(zip(rows, shares, strict=True), 1):
        name = f"pc{number:02d}"
        unit = f"{request.scale:g} standard deviations of the images along the component"
        found_by = f"principal component {number} of h of noised images, {how}"
        explained = {"explained_variance": f"{share.min():.4f} to {share.max():.4f}"}
        info = replace(request.info(folder, name, images, unit, found_by), notes=explained)
        delta_h = (request.scale * row).reshape(len(grid), *folder.h_shape).half()
        paths.append(request.output / f"{name}.safetensors")
        directions.save(directions.Direction(info, TimestepDirection(delta_h, torch.tensor(grid))), paths[-1])
    return paths


def _merge_sketches(shards: Iterator[dict[str, torch.Tensor]], rank: int) -> PcaSketch:
    merged = PcaSketch(rank)
    for tensors in shards:
        merged.merge(PcaSketch.from_tensors(tensors, rank))
    return merged


def folder_labels(source: str, names: tuple[str, ...]) -> tuple[list[str], dict[str, np.ndarray]]:
    """A column per name, 1 for the images in the folder of that name and 0 for the others."""
    folders = {image.key: PurePosixPath(image.key).parts[:-1] for image in list_images(source)}
    known = sorted({folder for parts in folders.values() for folder in parts})
    for name in names:
        if name not in known:
            raise UserError(f"below {source} there is no folder '{name}': there are {', '.join(known) or 'none'}")
    return list(names), {key: np.array([float(n in parts) for n in names]) for key, parts in folders.items()}


def _digest(table: Mapping[str, np.ndarray]) -> str:
    rows = json.dumps([[key, table[key].tolist()] for key in sorted(table)])
    return hashlib.sha256(rows.encode()).hexdigest()


def read_labels(url: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """The numeric columns of a CSV or Parquet table, and its rows float64 [K] by key."""
    fs, path = open_filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            table = pa.parquet.read_table(file) if path.endswith(".parquet") else pa.csv.read_csv(file)
    except FileNotFoundError:
        raise UserError(f"there is no table of labels {url}") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{url} is neither CSV nor Parquet: {error}") from error
    if KEY not in table.column_names:
        raise UserError(f"{url} has no column '{KEY}' with the images' paths relative to the source")
    numeric = [
        f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)
        or pa.types.is_boolean(f.type)
    ]  # fmt: skip
    if not numeric:
        raise UserError(f"{url} has no numeric column: labels are numbers, such as 0 and 1")
    values = np.stack([pc.cast(table[name], pa.float64()).to_numpy() for name in numeric], axis=1)
    if np.isnan(values).any():
        raise UserError(f"{url} has empty cells: every image needs every label")
    return numeric, dict(zip(table[KEY].to_pylist(), values, strict=True))
