"""The diffusion process in whole calls: a solver of `asyrp.diffusion.solvers`, its inversions, and no gradients.

Images and latents are float32 [B, 3, H, W]. Images are in [-1, 1]. All tensors are on the device of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asyrp.diffusion.moves import SolverName
from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.diffusion.solvers import DDIM, DPMSolver, Solver
from asyrp.directions.edits import Edit
from asyrp.directions.forms import Direction
from asyrp.directions.shift import shift_for
from asyrp.models.load import Model


@dataclass(frozen=True)
class Inversion:
    """Inverted images, ready to be edited again and again: what `solver` keeps of them, [B, K, 3, H, W]."""

    solver: Solver
    kept: Tensor

    @torch.no_grad()
    def reconstructed(self) -> Tensor:
        """The images [B, 3, H, W] that the plain process makes of the inversion."""
        return self.solver.reconstruct(self.kept)


def invert(model: Model, x_0: Tensor, n_steps: int = 20, solver: SolverName = "dpmpp_2m", refine: int = 0) -> Inversion:
    """The inversion of the images `x_0`, whose edits take `n_steps` steps as well.

    The papers' process is `solver="ddim"` with 40 steps; `refine` fixed-point iterations per step reconstruct better.

    Raises:
        ValueError: if the model has fewer than `n_steps` timesteps, or if `refine` is given with another solver.
    """
    if refine and solver != "ddim":
        raise ValueError("refine is for the solver ddim: an edit of dpmpp_2m loses nothing of the image")
    chosen: Solver
    if solver == "ddim":
        chosen = DDIM(model.unet, model.schedule, n_steps, n_steps, refine)
    else:
        chosen = DPMSolver(model.unet, model.schedule, n_steps)
    with torch.no_grad():
        return Inversion(chosen, chosen.invert(x_0))


@torch.no_grad()
def edit(
    inversion: Inversion,
    edit: Edit,
    directions: Mapping[str, Direction],
    t_edits: Sequence[int] | None = None,
    t_boost: int = 0,
    seed: int = 0,
) -> Tensor:
    """The edited images [B, 3, H, W] of an inversion (Asyrp eq. 5).

    Args:
        t_edits: where each direction of the edit stops acting. None: as the directions suggest.
        t_boost: fresh noise is added in every step that starts below this timestep (eta = 1). It depends on `seed` and
            on the index of the image in the batch, and is the same on every device.

    Raises:
        UserError: if a direction suggests no t_edit and none is given.
    """
    shift = shift_for(inversion.solver, edit, directions, t_edits)
    x = inversion.solver.edit(inversion.kept, shift, t_boost)
    keys = [noise_key(seed, str(index), "") for index in range(len(x))]

    def noise(t: int) -> Tensor:
        return boosting_noise(keys, t, tuple(x.shape[1:]), x.device)

    return inversion.solver.boost(x, shift, t_boost, noise)
