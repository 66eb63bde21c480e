"""Computes the shift of h that an edit makes at each timestep of denoising."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asyrp.diffusion.dpm_solver import Push
from asyrp.diffusion.edit_weights import EditWeights
from asyrp.diffusion.moves import inside
from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.solvers import DDIM, Solver
from asyrp.diffusion.unet import Encoded
from asyrp.directions.edits import Edit
from asyrp.directions.forms import Direction
from asyrp.errors import UserError


@dataclass(frozen=True)
class EditShift:
    """The shift of h that an edit makes in a process of `n_steps` generation steps.

    Each direction acts in its own interval, from its t_start down to its t_edit. Outside all intervals there is no
    shift.
    """

    terms: tuple[tuple[Direction, float, int], ...]  # direction, coefficient, t_edit
    n_steps: int
    strengths: Tensor | None = None  # [B], a factor for each image of the batch; None: 1
    ends: tuple[Tensor, ...] | None = None  # for each term the t_edit [B] of each image, at least that of the term
    weights: EditWeights | None = None  # of moves, for a process that takes moves of any length

    @property
    def t_edit(self) -> int | None:
        """The last timestep at which the edit acts; None for a reconstruction."""
        return min((t_edit for _, _, t_edit in self.terms), default=None)

    def __call__(self, encoded: Encoded, t: int) -> Tensor | None:
        active = [
            (index, direction, c)
            for index, (direction, c, t_edit) in enumerate(self.terms)
            if inside(t, direction.info.t_start, t_edit)
        ]
        if not active:
            return None
        deltas = [c * direction.delta_h(encoded, t, self.n_steps) for _, direction, c in active]
        if self.ends is not None:
            deltas = [
                _scaled(delta, self.ends[index] <= t) for (index, _, _), delta in zip(active, deltas, strict=True)
            ]
        delta_h = torch.stack(torch.broadcast_tensors(*deltas)).sum(0) if len(deltas) > 1 else deltas[0]
        return delta_h if self.strengths is None else _scaled(delta_h, self.strengths)

    def acts(self, t: int, t_next: int) -> bool:
        """Whether the edit acts in the move from t to t_next."""
        intervals = [(direction.info.t_start, t_edit) for direction, _, t_edit in self.terms]
        if self.weights is None:
            return any(inside(t, *interval) for interval in intervals)
        return any(self.weights.acts(t, t_next, *interval) for interval in intervals)

    def push(self, encoded: Encoded, t: int, t_next: int) -> Push:
        """The shift and its weights for a move in which the edit acts.

        A direction that acts in a part of the move only is shifted by as much less.
        """
        assert self.weights is not None
        values, slopes = self._weights(t, t_next, len(encoded.h))  # [terms, B]
        most = values.max(dim=0)
        shares = torch.where(most.values > 0, values / most.values, 0)
        deltas = [
            _scaled(c * direction.delta_h(encoded, t, self.n_steps), share)
            for (direction, c, _), share in zip(self.terms, shares, strict=True)
            if share.any()
        ]
        if not deltas:  # where the levels of a schedule do not change, an edit weighs nothing
            deltas = [torch.zeros_like(encoded.h)]
        delta_h = torch.stack(deltas).sum(0) if len(deltas) > 1 else deltas[0]
        if self.strengths is not None:
            delta_h = _scaled(delta_h, self.strengths)
        slope = slopes.gather(0, most.indices[None])[0]
        return Push(delta_h, most.values, slope)

    def _weights(self, t: int, t_next: int, count: int) -> tuple[Tensor, Tensor]:
        """The value and slope of the weight of each term for each image of a move, float32 [terms, B]."""
        assert self.weights is not None
        found = []
        for index, (direction, _, t_edit) in enumerate(self.terms):
            ends = [t_edit] * count if self.ends is None else self.ends[index].tolist()
            known = {end: self.weights.of_move(t, t_next, direction.info.t_start, end) for end in set(ends)}
            found.append([known[end] for end in ends])
        values, slopes = torch.tensor(found).unbind(dim=-1)
        return values, slopes

    def for_images(self, strengths: Tensor | None, ends: tuple[Tensor, ...] | None) -> "EditShift":
        """The shift for a batch in which each image has its own strength [B], or its own t_edit [B] for each term."""
        terms = self.terms
        if ends is not None:
            last = zip(terms, ends, strict=True)
            terms = tuple((direction, c, int(end.min())) for (direction, c, _), end in last)
        return replace(self, terms=terms, strengths=strengths, ends=ends)


@dataclass(frozen=True)
class MixedShift:
    """The shift of a batch in which each image has its own edit. Each image gets exactly the shift of its edit."""

    shifts: tuple[EditShift, ...]
    of_image: Tensor  # [B], indices of shifts, on the CPU

    def __call__(self, encoded: Encoded, t: int) -> Tensor | None:
        deltas = [shift(encoded, t) for shift in self.shifts]
        if all(delta is None for delta in deltas):
            return None
        of_image = self.of_image.to(encoded.h.device, non_blocking=True)[:, None, None, None]
        mixed = torch.zeros_like(encoded.h)
        for index, delta in enumerate(deltas):
            if delta is not None:
                mixed = torch.where(of_image == index, delta.to(mixed.dtype), mixed)
        return mixed

    def acts(self, t: int, t_next: int) -> bool:
        """Whether any of the edits acts in the move from t to t_next."""
        return any(shift.acts(t, t_next) for shift in self.shifts)

    def push(self, encoded: Encoded, t: int, t_next: int) -> Push:
        """The pushes of the edits that act in a move, each for its own images."""
        of_image = self.of_image.to(encoded.h.device, non_blocking=True)[:, None, None, None]
        mixed = Push(torch.zeros_like(encoded.h), *torch.zeros(2, len(self.of_image)))
        for index, shift in enumerate(self.shifts):
            if not shift.acts(t, t_next):
                continue
            own, push = self.of_image == index, shift.push(encoded, t, t_next)
            mixed = Push(
                torch.where(of_image == index, push.delta_h.to(mixed.delta_h.dtype), mixed.delta_h),
                torch.where(own, push.value, mixed.value),
                torch.where(own, push.slope, mixed.slope),
            )
        return mixed


def _scaled(delta_h: Tensor, factors: Tensor) -> Tensor:
    """delta_h [B or 1, C, h, w] times a factor for each image, [B]."""
    return delta_h * factors.to(delta_h.device, delta_h.dtype, non_blocking=True)[:, None, None, None]


def make_shift(
    edit: Edit, directions: Mapping[str, Direction], n_steps: int, t_edits: Sequence[int] | None = None
) -> EditShift:
    """Bind an edit to its directions. `t_edits`, one for each term, override those that the direction files suggest.

    Raises:
        UserError: if a direction suggests no t_edit and none is given.
    """
    return EditShift(_terms(edit, directions, t_edits), n_steps)


def make_weighted_shift(
    edit: Edit, directions: Mapping[str, Direction], schedule: NoiseSchedule, t_edits: Sequence[int] | None = None
) -> EditShift:
    """The same for moves of any length: each weighs as much as the steps that it replaces, of the process for which the
    directions' strength 1 was set. Directions of fewer steps are scaled to those of the most.

    Raises:
        UserError: as `make_shift` does.
    """
    n_steps = max((directions[name].info.n_steps for name, _ in edit.weights), default=1)
    return EditShift(_terms(edit, directions, t_edits), n_steps, weights=EditWeights(schedule, n_steps))


def shift_for(
    solver: Solver, edit: Edit, directions: Mapping[str, Direction], t_edits: Sequence[int] | None = None
) -> EditShift:
    """Bind an edit to its directions for a solver, as `make_shift` does for one that takes the papers' steps."""
    if isinstance(solver, DDIM):
        return make_shift(edit, directions, solver.n_gen, t_edits)
    return make_weighted_shift(edit, directions, solver.schedule, t_edits)


def _terms(
    edit: Edit, directions: Mapping[str, Direction], t_edits: Sequence[int] | None
) -> tuple[tuple[Direction, float, int], ...]:
    terms = []
    for index, (name, weight) in enumerate(edit.weights):
        direction = directions[name]
        last = t_edits[index] if t_edits else direction.info.t_edit
        if last is None:
            raise UserError(f"direction '{name}' suggests no t_edit: give one (400 to 700 is usual)")
        terms.append((direction, edit.strength * weight, last))
    return tuple(terms)
