"""`asyrp directions average`: the mean of an implicit direction over images."""

from dataclasses import replace
from pathlib import Path

import torch

from asyrp.directions.forms import Direction, TimestepDirection
from asyrp.directions.info import check_model, file_digest, read_info
from asyrp.errors import UserError
from jobs.learn.collect import collect
from jobs.learn.request import LearnRequest, edited_timesteps
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import NoisedH
from pipeline.stages.reducers import mean_sums
from pipeline.stages.settings import DirectionSource


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
    grid = edited_timesteps(folder, info.n_steps, info.t_start, info.t_edit)
    source = DirectionSource(str(direction.absolute()), file_digest(direction))
    reading = NoisedH(grid, request.seed, source)
    aggregation = mean_sums()
    sums, images = collect(request.collection(folder, reading, aggregation, {}), aggregation.merge)
    notes = info.notes | {"averaged over": f"{images} images"}
    form = TimestepDirection(sums.mean(), torch.tensor(grid))
    return Direction(replace(info, form="timestep", notes=notes), form)
