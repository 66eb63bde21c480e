"""Linear algebra on directions that consist of tensors: project, combine, scale, begin later, compare, average.

Every operation works on delta_h at strength 1, at the timesteps of a common grid. A result keeps the unit and the
number of steps of the first direction.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from asyrp.diffusion.moves import inside
from asyrp.diffusion.schedule import timesteps
from asyrp.directions.forms import Direction, GlobalDirection, TimestepDirection
from asyrp.directions.info import CURVE, VERDICT, DirectionInfo
from asyrp.errors import UserError


def project(direction: Direction, others: Sequence[Direction], jointly: bool = False) -> Direction:
    """The part of a direction that is orthogonal to all the others (Haas et al. 2024, section 3.3).

    The result is exact: the whole span of the others is removed at once, so their order and correlation do not matter.
    Each timestep is projected on its own or, with `jointly`, all timesteps together, with one coefficient per other
    direction.

    Raises:
        UserError: if a direction belongs to another model or has no tensors, or if nothing is left.
    """
    grid, (own, *rest) = on_common_grid([direction, *others])
    if jointly:
        left = _orthogonal_part(own.reshape(1, -1), torch.stack([other.reshape(1, -1) for other in rest], dim=1))
    else:
        left = _orthogonal_part(own.flatten(1), torch.stack([other.flatten(1) for other in rest], dim=1))
    if left.norm() < 1e-4 * own.norm():
        raise UserError(f"nothing of direction '{direction.info.name}' is left: the others span it")
    names = ", ".join(other.info.name for other in others)
    how = "jointly over time" if jointly else "per timestep"
    return _derived(direction.info, grid, left.reshape(own.shape), {"projected out": f"{names}, {how}"})


def combine(terms: Sequence[tuple[Direction, float]]) -> Direction:
    """The weighted sum of directions, as one direction.

    Raises:
        UserError: if the directions belong to different models, or one has no tensors.
    """
    grid, tensors = on_common_grid([direction for direction, _ in terms])
    total = torch.stack([weight * tensor for (_, weight), tensor in zip(terms, tensors, strict=True)]).sum(0)
    note = " + ".join(f"{weight:g} {direction.info.name}" for direction, weight in terms)
    info = terms[0][0].info
    others = [direction.info for direction, _ in terms]
    t_edits = [other.t_edit for other in others if other.t_edit is not None]
    t_starts = [other.t_start for other in others if other.t_start is not None]
    t_start = max(t_starts) if len(t_starts) == len(others) else None
    bounded = replace(info, t_edit=min(t_edits, default=None), t_start=t_start)
    return _derived(bounded, grid, total, {"sum of": note})


def scale(direction: Direction, factor: float) -> Direction:
    """The direction whose strength 1 is strength `factor` of the given one. Raises UserError if it has no tensors."""
    grid, [own] = on_common_grid([direction])
    return _derived(direction.info, grid, factor * own, {"scaled by": f"{factor:g}"})


def begin_at(direction: Direction, t_start: int) -> Direction:
    """A direction that does not act above timestep `t_start`. The direction can have any form.

    Raises:
        UserError: if it already ends above `t_start`.
    """
    t_edit = direction.info.t_edit
    if t_edit is not None and t_start < t_edit:
        raise UserError(f"direction '{direction.info.name}' ends at {t_edit}, so it cannot begin at {t_start}")
    return replace(direction, info=replace(direction.info, t_start=t_start, notes=_kept(direction.info)))


def average_over_time(direction: Direction) -> Direction:
    """The mean over the timesteps at which a direction acts, as one tensor for all: delta_h^global of the paper.

    Raises:
        UserError: if the direction has no tensors.
    """
    grid, [own] = on_common_grid([direction])
    acts = [index for index, t in enumerate(grid) if _acts(direction.info, t)]
    info = replace(direction.info, form="global", notes=_kept(direction.info) | {"averaged over": "time"})
    return Direction(info, GlobalDirection(own[acts].mean(0)))


def cosines(directions: Sequence[Direction]) -> Tensor:
    """The cosine of every two directions [N, N], over all timesteps of their common grid.

    Raises:
        UserError: if the directions belong to different models, or one has no tensors.
    """
    _, tensors = on_common_grid(directions)
    flat = torch.nn.functional.normalize(torch.stack(tensors).flatten(1), dim=1)
    return flat @ flat.T


def norms(direction: Direction) -> tuple[list[int], Tensor]:
    """The timesteps of a direction, and the norm of delta_h at each of them [T]."""
    grid, [own] = on_common_grid([direction])
    return grid, own.flatten(1).norm(dim=1)


def on_common_grid(directions: Sequence[Direction]) -> tuple[list[int], list[Tensor]]:
    """The timesteps of all directions, ascending, and delta_h [T, C, h, w] of each direction at them.

    delta_h is scaled to the number of generation steps of the first direction. It is zero at timesteps at which the
    direction does not act (above its t_start, below its t_edit).

    Raises:
        UserError: if the directions belong to different models, or one has no tensors.
    """
    first = directions[0].info
    for direction in directions:
        if direction.info.model_digest != first.model_digest:
            raise UserError(
                f"directions '{first.name}' and '{direction.info.name}' belong to different models "
                f"({first.model_digest[:12]}, {direction.info.model_digest[:12]}): h-space differs from model to model"
            )
        if not isinstance(direction.form, TimestepDirection | GlobalDirection):
            raise UserError(
                f"direction '{direction.info.name}' is an implicit function: average it over images first "
                "(asyrp directions average)"
            )
    grid = sorted({t for direction in directions for t in _steps(direction)})
    return grid, [_at(direction, grid, first.n_steps) for direction in directions]


def _steps(direction: Direction) -> list[int]:
    """The timesteps that a direction has tensors for. A global direction has one for every generation step."""
    form = direction.form
    return form.steps if isinstance(form, TimestepDirection) else timesteps(direction.info.n_steps)


def _at(direction: Direction, grid: Sequence[int], n_steps: int) -> Tensor:
    form, factor = direction.form, direction.info.n_steps / n_steps
    assert isinstance(form, TimestepDirection | GlobalDirection)
    acts = torch.tensor([float(_acts(direction.info, t)) for t in grid])
    if isinstance(form, GlobalDirection):
        tensors = form.delta_h.expand(len(grid), *form.delta_h.shape)
    else:
        tensors = torch.stack([form.delta_h[form.nearest(t)] for t in grid])
    return factor * acts[:, None, None, None] * tensors


def _acts(info: DirectionInfo, t: int) -> bool:
    return inside(t, info.t_start, info.t_edit or 0)


def _orthogonal_part(own: Tensor, others: Tensor) -> Tensor:
    """Rows `own` [G, D] without their projections on the spans of `others` [G, N, D]; least squares in float64."""
    basis = others.double().transpose(1, 2)
    target = own.double()[:, :, None]
    solution = torch.linalg.lstsq(basis, target, driver="gelsd").solution
    return (target - basis @ solution)[:, :, 0].float()


def _kept(info: DirectionInfo) -> dict[str, str]:
    """The notes that hold for a direction that is derived from another."""
    return {name: note for name, note in info.notes.items() if name not in (VERDICT, CURVE)}


def _derived(info: DirectionInfo, grid: Sequence[int], delta_h: Tensor, note: dict[str, str]) -> Direction:
    derived = replace(info, form="timestep", notes=_kept(info) | note)
    return Direction(derived, TimestepDirection(delta_h.float(), torch.tensor(grid)))
