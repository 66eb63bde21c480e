"""Measures distances while images are inverted. Intervals are found from these distances."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyrp.diffusion.process import ddim_step, predict, predicted_x0
from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import SplitUNet
from asyrp.measures.intervals import Curve
from asyrp.measures.perceptual import Measure

CURVES = ("p_t", "x_t")
NOT_REACHED = -1


@torch.inference_mode()
def inversion_distances(
    unet: SplitUNet, schedule: NoiseSchedule, measure: Measure, x_0: Tensor, grid: Sequence[int]
) -> Tensor:
    """Returns the distances [B, 2, T] of images [B, 3, H, W] to their P_t and x_t, at the timesteps `grid`.

    They are measured during a DDIM inversion, which takes T evaluations of the net. P_t counts for the timestep at
    which it was predicted (the released code keys it by the next one).
    """
    x, found = x_0, []
    for t, t_next in [*itertools.pairwise(grid), (grid[-1], grid[-1])]:
        a = schedule.level(t)
        eps = predict(unet, x, t)
        found.append(torch.stack([measure(x_0, predicted_x0(x, eps, a)), measure(x_0, x)], dim=1))
        x = ddim_step(x, eps, a, schedule.level(t_next))
    return torch.stack(found, dim=2)


class ImageEnds:
    """Finds the t_edit of every image from its own distances, as an observer of `process.invert`.

    t_edit is the first timestep of the inversion at which the distance from the image to P_t reaches a level.
    `distances` holds the level of each direction. This costs one measurement per step.
    """

    def __init__(self, measure: Measure, x_0: Tensor, distances: Mapping[str, float]) -> None:
        self.measure, self.x_0, self.distances = measure, x_0, distances
        self._found = {name: torch.full((len(x_0),), NOT_REACHED) for name in distances}

    def __call__(self, t: int, p_t: Tensor) -> None:
        distance = self.measure(self.x_0, p_t).cpu()
        for name, level in self.distances.items():
            found = self._found[name]
            found[(found == NOT_REACHED) & (distance >= level)] = t

    def t_edits(self, direction: str, otherwise: int) -> Tensor:
        """Returns the t_edit [B] of a direction on each image, or `otherwise` where its level was never reached."""
        found = self._found[direction]
        return torch.where(found == NOT_REACHED, otherwise, found)


class CurveSums:
    """Sums of distances [2, T] and of their squares over images, in float64. They add up in any order."""

    def __init__(self) -> None:
        self.images = 0
        self.sums = torch.zeros(2, 1, 1, dtype=torch.float64)  # [power, curve, T]

    def add(self, distances: Tensor) -> None:
        """Add one image's distances [2, T]."""
        distances = distances.double()
        self.images += 1
        self.sums = self.sums + torch.stack([distances, distances.square()])

    def merge(self, other: "CurveSums") -> None:
        """Add the sums of other images."""
        self.images += other.images
        self.sums = self.sums + other.sums

    def tensors(self) -> dict[str, Tensor]:
        """Returns the sums, to be stored."""
        return {"images": torch.tensor(self.images), "sums": self.sums}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace these sums by stored ones."""
        self.images, self.sums = int(tensors["images"]), tensors["sums"]

    def curves(self) -> dict[str, Curve]:
        """Returns both curves by name. There must be at least one image."""
        mean, of_squares = self.sums / self.images
        std = (of_squares - mean.square()).clamp(min=0).sqrt()
        return {name: Curve(tuple(m), tuple(s)) for name, m, s in zip(CURVES, mean.tolist(), std.tolist(), strict=True)}
