"""Finds what strength 1 is for a direction whose training does not set it. It does so by looking at edited images."""

from collections.abc import Callable

import torch
from torch import Tensor

from asyrp.diffusion.process import edit
from asyrp.diffusion.schedule import generation_pairs
from asyrp.directions.forms import Direction
from asyrp.directions.shift import EditShift
from asyrp.models.load import Model

STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
ENOUGH = 0.9


@torch.no_grad()
def unit_strength(
    model: Model, direction: Direction, x_T: Tensor, t_edit: int, has: Callable[[Tensor], Tensor]
) -> float | None:
    """Returns the least of STRENGTHS at which the share ENOUGH of the edited images has the target attribute.

    The images are edited from latents x_T [B, 3, H, W]. `has` takes edited images and returns which of them have the
    attribute, bool [B]. The result is None if not even the greatest strength is enough.
    """
    n_steps = direction.info.n_steps
    pairs = generation_pairs(n_steps, len(model.schedule) - 1)
    for strength in STRENGTHS:
        shift = EditShift(((direction, strength, t_edit),), n_steps)
        if has(edit(model.unet, model.schedule, x_T, pairs, shift)).float().mean() >= ENOUGH:
            return strength
    return None
