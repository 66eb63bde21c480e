"""Computes the shift of h that an edit makes at each timestep of denoising."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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

    @property
    def t_edit(self) -> int | None:
        """The last timestep at which the edit acts; None for a reconstruction."""
        return min((t_edit for _, _, t_edit in self.terms), default=None)

    def __call__(self, encoded: Encoded, t: int) -> Tensor | None:
        active = [
            (index, direction, c)
            for index, (direction, c, t_edit) in enumerate(self.terms)
            if t >= t_edit and direction.info.begun(t)
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
    of_image: Tensor  # [B], indices of shifts

    def __call__(self, encoded: Encoded, t: int) -> Tensor | None:
        deltas = [shift(encoded, t) for shift in self.shifts]
        if all(delta is None for delta in deltas):
            return None
        of_image = self.of_image.to(encoded.h.device)[:, None, None, None]
        mixed = torch.zeros_like(encoded.h)
        for index, delta in enumerate(deltas):
            if delta is not None:
                mixed = torch.where(of_image == index, delta.to(mixed.dtype), mixed)
        return mixed


def _scaled(delta_h: Tensor, factors: Tensor) -> Tensor:
    """delta_h [B or 1, C, h, w] times a factor for each image, [B]."""
    return delta_h * factors.to(delta_h.device, delta_h.dtype)[:, None, None, None]


def make_shift(
    edit: Edit, directions: Mapping[str, Direction], n_steps: int, t_edits: Sequence[int] | None = None
) -> EditShift:
    """Bind an edit to its directions. `t_edits`, one for each term, override those that the direction files suggest.

    Raises:
        UserError: if a direction suggests no t_edit and none is given.
    """
    terms = []
    for index, (name, weight) in enumerate(edit.weights):
        direction = directions[name]
        last = t_edits[index] if t_edits else direction.info.t_edit
        if last is None:
            raise UserError(f"direction '{name}' suggests no t_edit: give one (400 to 700 is usual)")
        terms.append((direction, edit.strength * weight, last))
    return EditShift(tuple(terms), n_steps)
