"""Directions from labels: h regressed on all labels at once, at every timestep.

With one binary label the coefficient is exactly the difference of the class means of h. With more, each
coefficient is that difference with the other labels held fixed, which removes what a raw difference of a few
hundred images mostly is: chance differences in the other attributes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from asyrp.noise import boosting_noise, noise_key
from asyrp.schedule import NoiseSchedule
from asyrp.unet import SplitUNet


class LabelSums:
    """Sums of [1, labels]' [1, labels] and [1, labels]' h per timestep, float64; they add up in any order.

    Memory is T * (labels + 1) * (C h w) numbers, whatever the number of images.
    """

    def __init__(self, n_labels: int, n_timesteps: int) -> None:
        self.gram = torch.zeros(n_labels + 1, n_labels + 1, dtype=torch.float64)
        self.products: list[Tensor | None] = [None] * n_timesteps

    def add_labels(self, labels: Tensor) -> None:
        """Count images with these labels [B, K]; `add_h` must follow once per timestep."""
        design = _design(labels)
        self.gram += design.T @ design

    def add_h(self, index: int, labels: Tensor, h: Tensor) -> None:
        """Add bottlenecks [B, C, h, w] of the same images at the grid's timestep number `index`."""
        product = torch.einsum("bk,bchw->kchw", _design(labels), h.double().cpu())
        current = self.products[index]
        self.products[index] = product if current is None else current + product

    def merge(self, other: "LabelSums") -> None:
        """Add the sums of other images."""
        self.gram += other.gram
        pairs = zip(self.products, other.products, strict=True)
        self.products = [b if a is None else a if b is None else a + b for a, b in pairs]

    def directions(self) -> Tensor:
        """The coefficients [K, T, C, h, w], float32: the change of h per unit of each label.

        Raises:
            ValueError: if the labels do not tell each other apart (one is constant, or two are equal).
        """
        if torch.linalg.matrix_rank(self.gram) < len(self.gram):
            raise ValueError("a label is constant over these images, or a sum of others: its direction is undefined")
        stacked = torch.stack([p for p in self.products if p is not None], dim=1)
        solved = torch.linalg.solve(self.gram, stacked.flatten(1))
        return solved[1:].reshape(-1, *stacked.shape[1:]).float()


def _design(labels: Tensor) -> Tensor:
    return torch.cat([torch.ones(len(labels), 1, dtype=torch.float64), labels.double().cpu()], dim=1)


@torch.inference_mode()
def add_images(
    sums: LabelSums,
    unet: SplitUNet,
    schedule: NoiseSchedule,
    x_0: Tensor,
    labels: Tensor,
    keys: Sequence[str],
    grid: Sequence[int],
    seed: int = 0,
) -> None:
    """Add a batch of images [B, 3, H, W] with labels [B, K]: one encode of noised x_t per timestep of `grid`.

    The noise of an image is a function of (seed, key, t), so the sums do not depend on batches or order.
    """
    sums.add_labels(labels)
    noise_keys = [noise_key(seed, key, "labels") for key in keys]
    for index, t in enumerate(grid):
        a = schedule.level(t)
        noise = boosting_noise(noise_keys, t, tuple(x_0.shape[1:]), x_0.device)
        sums.add_h(index, labels, unet.encode(a**0.5 * x_0 + (1 - a) ** 0.5 * noise, t).h)
