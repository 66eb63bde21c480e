"""The diffusion process in whole calls: `asyrp.diffusion.process` with a model, a number of steps and no gradients.

Images and latents are float32 [B, 3, H, W]. Images are in [-1, 1]. All tensors are on the device of the model.
"""

import torch
from torch import Tensor

from asyrp.diffusion import process
from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.diffusion.schedule import generation_pairs, inversion_pairs
from asyrp.directions.shift import EditShift
from asyrp.models.load import Model


@torch.no_grad()
def invert(model: Model, x_0: Tensor, n_steps: int = 40, refine: int = 0) -> Tensor:
    """x_T [B, 3, H, W] of the images `x_0` by DDIM inversion.

    `refine` fixed-point iterations per step reconstruct better; 2 of them take twice as long.

    Raises:
        ValueError: if the model has fewer than `n_steps` timesteps.
    """
    pairs = inversion_pairs(n_steps, len(model.schedule) - 1)
    return process.invert(model.unet, model.schedule, x_0, pairs, refine)


@torch.no_grad()
def edit(model: Model, x_T: Tensor, shift: EditShift) -> Tensor:
    """The edited images [B, 3, H, W] of `x_T`, in the number of steps that `shift` was made for (Asyrp eq. 5)."""
    return process.edit(model.unet, model.schedule, x_T, _generation_pairs(model, shift), shift)


@torch.no_grad()
def boost(model: Model, x_T: Tensor, shift: EditShift, t_boost: int, seed: int = 0) -> Tensor:
    """The images that `edit` gives, with fresh noise (eta = 1) in every step that starts below timestep `t_boost`.

    The noise depends on `seed` and on the index of the image in the batch. It is the same on every device.
    """
    edited, boosted = process.split_at_boost(_generation_pairs(model, shift), t_boost)
    x = process.edit(model.unet, model.schedule, x_T, edited, shift)
    keys = [noise_key(seed, str(index), "") for index in range(len(x))]

    def noise(t: int) -> Tensor:
        return boosting_noise(keys, t, tuple(x.shape[1:]), x.device)

    return process.boost(model.unet, model.schedule, x, boosted, shift=shift, noise=noise)


def _generation_pairs(model: Model, shift: EditShift) -> process.Pairs:
    return generation_pairs(shift.n_steps, len(model.schedule) - 1)
