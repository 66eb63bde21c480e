"""The shift of h that an edit makes while denoising."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asyrp.directions import Direction
from asyrp.edits import Edit
from asyrp.errors import UserError
from asyrp.unet import Encoded


@dataclass(frozen=True)
class EditShift:
    """The shift of h that an edit makes in a process of `n_steps` generation steps.

    Each direction acts in its own interval, from its t_start down to its t_edit; outside all of them there is no shift.
    """

    terms: tuple[tuple[Direction, float, int], ...]  # direction, coefficient, t_edit
    n_steps: int

    @property
    def t_edit(self) -> int | None:
        """The last timestep at which the edit acts; None for a reconstruction."""
        return min((t_edit for _, _, t_edit in self.terms), default=None)

    def __call__(self, encoded: Encoded, t: int) -> Tensor | None:
        active = [(direction, c) for direction, c, t_edit in self.terms if t >= t_edit and direction.info.begun(t)]
        if not active:
            return None
        deltas = [c * direction.delta_h(encoded, t, self.n_steps) for direction, c in active]
        return torch.stack(torch.broadcast_tensors(*deltas)).sum(0) if len(deltas) > 1 else deltas[0]


def make_shift(
    edit: Edit, directions: Mapping[str, Direction], n_steps: int, t_edits: Sequence[int] | None = None
) -> EditShift:
    """Bind an edit to its directions; `t_edits`, one for each of its terms, override what the direction files suggest.

    Raises:
        UserError: if a direction has no t_edit of its own and none is given.
    """
    terms = []
    for index, (name, weight) in enumerate(edit.weights):
        direction = directions[name]
        last = t_edits[index] if t_edits else direction.info.t_edit
        if last is None:
            raise UserError(f"direction '{name}' suggests no t_edit: give one (400 to 700 is usual)")
        terms.append((direction, edit.strength * weight, last))
    return EditShift(tuple(terms), n_steps)
