"""`asyrp directions learn pca` and `jacobian`: directions that are found without labels or texts."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asyrp.directions.forms import Direction, GlobalDirection, save_direction
from asyrp.errors import UserError
from asyrp.learning.jacobian import KEPT_ROWS
from asyrp.learning.labels import HALVES
from jobs.learn.collect import collect
from jobs.learn.request import LearnRequest
from pipeline.images.codec import ImageRefused, refusing
from pipeline.images.source import FORMATS
from pipeline.images.statuses import DECODE_ERROR
from pipeline.sources.listing import list_images
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import JacobianOfH, NoisedH
from pipeline.stages.reducers import JACOBIAN_SUMS, pca_sketches

HALVES_UNIT = "the step between the means of the halves of the images along it"


def learn_pca(request: LearnRequest, components: int, joint: bool, rank: int, n_timesteps: int) -> list[Path]:
    """Learn and save the leading principal components of h as directions pc01, pc02, ... in the folder `output`.

    Strength 1 is `scale` steps between the means of the two halves of the images along the component. If `joint` is
    true, h at all timesteps is analysed together. Otherwise each timestep has its own analysis, and signs are aligned.
    h is read at `n_timesteps` of the grid.

    Raises:
        UserError: if there are fewer images or sketch rows than components.
    """
    folder = fetch_model(request.model)
    grid = request.some_of_grid(folder, n_timesteps)
    reading, aggregation = NoisedH(grid, request.seed), pca_sketches(rank, joint)
    identity = {"rank": rank, "joint": joint, "statistics": "pca"}
    sketch, images = collect(request.collection(folder, reading, aggregation, identity), aggregation.merge)
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
        found_by = f"principal component {number} of h of noised images, {how}"
        explained = {"explained_variance": f"{share.min():.4f} to {share.max():.4f}"}
        info = replace(request.info(folder, name, images, HALVES_UNIT, found_by), notes=explained)
        paths.append(request.output / f"{name}.safetensors")
        form = request.form(HALVES * row, grid, folder)
        save_direction(Direction(info, form), paths[-1])
    return paths


@dataclass(frozen=True)
class JacobianQuestion:
    """The number `k` of shifts to find, and the Jacobians to find them from.

    The Jacobians are taken at `n_timesteps` of the grid, of the images `keys` (None: all). `mask` is an image whose
    bright part is the region that the shifts must change.
    """

    k: int
    n_timesteps: int
    keys: frozenset[str] | None = None
    mask: Path | None = None


def learn_jacobian(request: LearnRequest, asked: JacobianQuestion) -> list[Path]:
    """Learn and save the shifts of h that change eps most as directions jv01, jv02, ... in the folder `output`.

    They are the right singular vectors of d eps / d h, stacked over all chosen images and timesteps. Each is one tensor
    for all timesteps (Haas et al. apply theirs in the same way). The unit of strength is how far h varies over all
    images of the source.

    Raises:
        UserError: if the mask is empty, a key does not exist, there are fewer than two images, or `k` is too large.
    """
    folder = fetch_model(request.model)
    if asked.k > KEPT_ROWS:
        raise UserError(f"--components {asked.k}: at most {KEPT_ROWS} shifts are kept")
    if asked.keys is not None:
        missing = asked.keys - {image.key for image in list_images(request.source)}
        if missing:
            raise UserError(f"there is no image '{min(missing)}' below {request.source}")
    mask = None if asked.mask is None else read_mask(asked.mask, folder.image_size)
    grid = request.some_of_grid(folder, asked.n_timesteps)
    reading = JacobianOfH(grid, request.seed, asked.k, asked.keys, mask)
    sums, images = collect(request.collection(folder, reading, JACOBIAN_SUMS, {}), JACOBIAN_SUMS.merge)
    try:
        rows, values = sums.directions(asked.k)
    except ValueError as error:
        raise UserError(f"{request.source}: {error}; give more images, or fewer --components") from error
    used = images if asked.keys is None else len(asked.keys)
    paths = []
    for number, (row, value) in enumerate(zip(rows, values.tolist(), strict=True), 1):
        name = f"jv{number:02d}"
        where = f" within {asked.mask.name}" if asked.mask else ""
        found_by = (
            f"right singular vector {number} of d eps / d h{where}, {used} images, t = {', '.join(map(str, grid))}"
        )
        info = replace(
            request.info(folder, name, images, HALVES_UNIT, found_by),
            form="global",
            notes={"singular_value": f"{value / (used * len(grid)) ** 0.5:.4g} (root mean square)"},
        )
        paths.append(request.output / f"{name}.safetensors")
        delta_h = (request.scale * row).reshape(folder.h_shape)
        save_direction(Direction(info, GlobalDirection(delta_h)), paths[-1])
    return paths


def read_mask(path: Path, size: int) -> tuple[tuple[float, ...], ...]:
    """Returns the rows of a mask at the size of the images. Values are 0 where it is black and 1 where it is white.

    Raises:
        UserError: if there is no such image, or all of it is black.
    """
    try:
        with refusing(DECODE_ERROR), Image.open(path, formats=tuple(FORMATS)) as image:
            grey = image.convert("L").resize((size, size), Image.Resampling.BOX)
    except ImageRefused as refusal:
        if isinstance(refusal.__cause__, FileNotFoundError):
            raise UserError(f"there is no mask {path}") from None
        raise UserError(f"the mask {path} is no image: {refusal}") from refusal
    rows = torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255)
    if not rows.any():
        raise UserError(f"the mask {path} is empty: paint the region that is to change white, the rest black")
    return tuple(tuple(row) for row in rows.tolist())
