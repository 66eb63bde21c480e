"""`asyrp directions learn labels`: directions from a folder of images and a table of their labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import torch
from rich.progress import track

from asyrp import directions, models
from asyrp.direction_info import DirectionInfo
from asyrp.errors import UserError
from asyrp.labels import LabelSums, add_images
from asyrp.registry import ModelFolder
from asyrp.schedule import timesteps
from jobs.display import console
from pipeline.images import ImageRefused, decode
from pipeline.model_source import find_model
from pipeline.sources import list_images
from pipeline.stages import self_check
from pipeline.storage import open_filesystem, read_url

KEY = "key"


@dataclass(frozen=True)
class LabelsRequest:
    """What to learn: directions `names` from images below `source` and the columns of the table `labels`.

    All numeric columns take part in the regression, so that each direction is found with the others held
    fixed; `names` are those that are saved. Strength 1 is `scale` times the change of h per unit of the label.
    """

    source: str
    labels: str
    names: tuple[str, ...]
    model: str
    output: Path
    n_steps: int = 40
    t_edit: int = 400
    t_boost: int | None = None
    scale: float = 1.0
    seed: int = 0
    batch_size: int = 32
    device: str = "cpu"
    check: bool = True


def learn(request: LabelsRequest) -> list[Path]:
    """Learn and save one direction file per name; the paths.

    Raises:
        UserError: if the table does not fit the images, or a label cannot be told from the others.
    """
    folder = find_model(request.model)
    columns, table = read_labels(request.labels)
    for name in request.names:
        if name not in columns:
            raise UserError(f"{request.labels} has no numeric column '{name}': it has {', '.join(columns)}")
    model = models.load(folder, request.device)
    if request.check:
        self_check(model, folder).refuse_a_failure(request.model)
    grid = [t for t in timesteps(request.n_steps, len(model.schedule) - 1) if t >= request.t_edit]
    sums, used = LabelSums(len(columns), len(grid)), 0
    for keys, pixels, labels in _batches(request, table, folder.image_size):
        x_0 = torch.from_numpy(pixels).to(request.device)
        add_images(sums, model.unet, model.schedule, x_0, torch.from_numpy(labels), keys, grid, request.seed)
        used += len(keys)
    if used == 0:
        raise UserError(f"none of the images below {request.source} is in {request.labels}: its column '{KEY}' "
                        "must hold their paths relative to the source")  # fmt: skip
    try:
        coefficients = sums.directions()
    except ValueError as error:
        raise UserError(f"{request.labels}: {error}") from error
    return [_save(request, folder, columns, name, coefficients, grid, used) for name in request.names]


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


def _batches(
    request: LabelsRequest, table: dict[str, np.ndarray], size: int
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Keys, pixels [B, 3, H, W] and labels [B, K] of the labelled images; unreadable ones are named and left out."""
    keys: list[str] = []
    pixels: list[np.ndarray] = []
    wanted = [image for image in list_images(request.source) if image.key in table]
    for image in track(wanted, "reading h", console=console, disable=not console.is_terminal):
        try:
            pixels.append(decode(read_url(image.uri), size, "crop").pixels)
        except (OSError, ImageRefused) as error:
            console.print(f"left out {image.key}: {error}", highlight=False)
            continue
        keys.append(image.key)
        if len(keys) == request.batch_size:
            yield keys, np.stack(pixels), np.stack([table[key] for key in keys])
            keys, pixels = [], []
    if keys:
        yield keys, np.stack(pixels), np.stack([table[key] for key in keys])


def _save(
    request: LabelsRequest,
    folder: ModelFolder,
    columns: list[str],
    name: str,
    coefficients: torch.Tensor,
    grid: list[int],
    used: int,
) -> Path:
    info = DirectionInfo(
        name=name,
        form="timestep",
        model_digest=folder.digest,
        n_steps=request.n_steps,
        t_edit=request.t_edit,
        t_boost=request.t_boost,
        unit=f"{request.scale:g} times the change of h per unit of the label '{name}'",
        found_by=f"h of noised images regressed on {len(columns)} labels: {', '.join(columns)}",
        found_on=f"{used} images",
    )
    delta_h = (request.scale * coefficients[columns.index(name)]).half()
    path = request.output / f"{name}.safetensors" if len(request.names) > 1 else request.output
    directions.save(directions.Direction(info, directions.TimestepDirection(delta_h, torch.tensor(grid))), path)
    return path
