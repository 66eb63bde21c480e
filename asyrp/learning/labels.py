"""Directions from labels, by regression of h on all labels at once at every timestep.

With one binary label, the coefficient is exactly the difference of the class means of h. With more labels, each
coefficient is that difference with the other labels held fixed. A raw difference of a few hundred images consists
mostly of chance differences in the other attributes. Holding these labels fixed removes them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import Encoded, SplitUNet

HALVES = math.sqrt(8 / math.pi)
"""The step from the mean of the lower half to the mean of the upper half of normally distributed values.

Its unit is the standard deviation of the values.
"""


def label_step(values: Sequence[float]) -> float:
    """Returns the step of a label that strength 1 makes.

    For a binary label it goes from one value to the other. For any other label it goes from the mean of the lower half
    to the mean of the upper half, as for normally distributed values.
    """
    found = torch.tensor(values, dtype=torch.float64)
    distinct = found.unique()
    return (distinct[1] - distinct[0]).item() if len(distinct) == 2 else HALVES * found.std().item()


@dataclass(frozen=True)
class LabelStatistics:
    """Statistics that show how well one label's direction is known, per timestep [T].

    `effect` is the direction's length divided by the standard deviation of h around the regression, both over all of h.
    `t_value` is the root mean square over h of coefficient / standard error. Chance gives 1.
    `chance` is the expected share of chance in the squared length of the direction, over all timesteps: the sum of the
    squared standard errors by the sum of the squared coefficients.
    """

    effect: Tensor
    t_value: Tensor
    chance: float

    @property
    def cosine(self) -> float:
        """The expected cosine of the direction with the one that any number of such images would give."""
        return math.sqrt(max(1 - self.chance, 0.0))


class LabelSums:
    """Sums of [1, labels]' [1, labels], [1, labels]' h and h^2 per timestep, in float64. They add up in any order.

    Memory is T * (labels + 2) * (C h w) numbers, whatever the number of images.
    """

    def __init__(self, n_labels: int) -> None:
        self.gram = torch.zeros(n_labels + 1, n_labels + 1, dtype=torch.float64)
        self.products: Tensor | None = None  # [K + 1, T, C, h, w]
        self.squares: Tensor | None = None  # [T, C, h, w]

    @property
    def images(self) -> int:
        return int(self.gram[0, 0])

    def add(self, labels: Tensor, h: Tensor) -> None:
        """Add images with labels [B, K] and bottlenecks [B, T, C, h, w], one per timestep of the grid."""
        h = h.double().cpu()
        design = torch.cat([torch.ones(len(labels), 1, dtype=torch.float64), labels.double().cpu()], dim=1)
        sums = LabelSums(labels.shape[1])
        sums.gram = design.T @ design
        sums.products = torch.einsum("bk,btchw->ktchw", design, h)
        sums.squares = h.square().sum(0)
        self.merge(sums)

    def merge(self, other: "LabelSums") -> None:
        """Add the sums of other images."""
        self.gram = self.gram + other.gram
        self.products = _plus(self.products, other.products)
        self.squares = _plus(self.squares, other.squares)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the sums, to be stored. Before the first image there are no sums of h."""
        named = {"gram": self.gram, "products": self.products, "squares": self.squares}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace these sums by stored ones."""
        self.gram, self.products, self.squares = tensors["gram"], tensors.get("products"), tensors.get("squares")

    def only(self, labels: Sequence[int]) -> "LabelSums":
        """Returns the sums of a regression on only these labels, given by their places."""
        kept = [0, *(1 + label for label in labels)]
        sums = LabelSums(len(labels))
        sums.gram, sums.squares = self.gram[kept][:, kept], self.squares
        sums.products = None if self.products is None else self.products[kept]
        return sums

    def at(self, timesteps: Sequence[int]) -> "LabelSums":
        """Returns the sums at only these timesteps, given by their places."""
        sums = LabelSums(len(self.gram) - 1)
        sums.gram = self.gram
        sums.products = None if self.products is None else self.products[:, timesteps]
        sums.squares = None if self.squares is None else self.squares[timesteps]
        return sums

    def directions(self) -> Tensor:
        """Returns the coefficients [K, T, C, h, w], float32. Each is the change of h per unit of a label.

        Raises:
            ValueError: if the labels cannot be told apart (one is constant, or two are equal).
        """
        return self._coefficients()[1:].float()

    def mean(self) -> Tensor:
        """Returns the mean of h over images [T, C, h, w], float32."""
        assert self.products is not None
        return (self.products[0] / self.gram[0, 0]).float()

    def statistics(self) -> list[LabelStatistics]:
        """Returns the statistics of each label's direction.

        Raises:
            ValueError: as `directions` does, or if there are not more images than labels.
        """
        if self.images <= len(self.gram):
            raise ValueError(
                f"{self.images} images are too few for {len(self.gram) - 1} labels: give more, or --hold fewer"
            )
        coefficients = self._coefficients()
        assert self.products is not None and self.squares is not None
        explained = (coefficients * self.products).sum(0)
        freedom = self.images - len(self.gram)
        variance = ((self.squares - explained) / freedom).clamp(min=1e-12)
        inverse = torch.linalg.inv(self.gram).diagonal()
        found = []
        for coefficient, own in zip(coefficients[1:], inverse[1:], strict=True):
            effect = coefficient.square().flatten(1).sum(1) / variance.flatten(1).sum(1)
            t_value = (coefficient.square() / (own * variance)).flatten(1).mean(1)
            chance = (own * variance.sum() / coefficient.square().sum().clamp(min=1e-12)).item()
            found.append(LabelStatistics(effect.sqrt(), t_value.sqrt(), chance))
        return found

    def _coefficients(self) -> Tensor:
        if self.products is None or torch.linalg.matrix_rank(self.gram) < len(self.gram):
            raise ValueError("a label is constant over these images, or a sum of others: its direction is undefined")
        return torch.linalg.solve(self.gram, self.products.flatten(1)).reshape(self.products.shape)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


@torch.inference_mode()
def noised_h(
    unet: SplitUNet,
    schedule: NoiseSchedule,
    x_0: Tensor,
    keys: Sequence[str],
    grid: Sequence[int],
    seed: int = 0,
    read: Callable[[Encoded, int], Tensor] | None = None,
) -> Tensor:
    """Returns h [B, T, C, h, w] of images [B, 3, H, W] noised to each timestep of `grid`, with one encode per timestep.

    If `read` is given, its result for the encoder's output at a timestep takes the place of h. The noise of an image is
    a function of (seed, key, t), so h does not depend on batches or order.
    """
    noise_keys = [noise_key(seed, key, "labels") for key in keys]

    def h_at(t: int) -> Tensor:
        a = schedule.level(t)
        noise = boosting_noise(noise_keys, t, tuple(x_0.shape[1:]), x_0.device)
        encoded = unet.encode(a**0.5 * x_0 + (1 - a) ** 0.5 * noise, t)
        return encoded.h if read is None else read(encoded, t)

    return torch.stack([h_at(t) for t in grid], dim=1)
