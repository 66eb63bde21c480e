"""Finds the shifts of h to which the decoder responds most (Haas et al. 2024, section 3.2).

This needs no labels and few images.

J = d eps / d h is the Jacobian of the decoder alone at one x_t, so the encoder runs once. The leading right singular
vectors of J are the shifts of h that change the predicted noise most. With a mask, only the noise in a region counts.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from asyrp.diffusion.unet import Encoded, SplitUNet
from asyrp.learning.labels import HALVES
from asyrp.learning.pca import PcaSketch, leading_rows

OVERSAMPLING = 4
MAX_ITERATIONS = 50
TOLERANCE = 1e-3
KEPT_ROWS = 64


def singular_vectors(
    unet: SplitUNet, encoded: Encoded, k: int, mask: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Returns the leading k singular values [k] and right singular vectors [k, C, h, w] of the decoder at one x_t.

    The values descend. The method is block power iteration on J'J with k + 4 vectors at once (Halko et al. 2011). It
    stops when no value changes by more than a thousandth. `encoded` is a batch of one, and `mask` [H, W] multiplies
    eps. The random start depends on the seed alone.
    """
    with torch.inference_mode(False), torch.no_grad():
        shape = encoded.h.shape[1:]
        width = min(k + OVERSAMPLING, shape.numel())
        forward, backward = _products(unet, encoded, width, mask)
        generator = torch.Generator().manual_seed(seed)
        vectors = _orthonormal(torch.randn(width, shape.numel(), generator=generator).to(encoded.h.device))
        values = torch.zeros(k, device=encoded.h.device)
        for _ in range(MAX_ITERATIONS):
            images = forward(vectors)
            _, scales, rotation = torch.linalg.svd(images.T, full_matrices=False)
            vectors = rotation @ vectors
            before, values = values, scales[:k]
            if ((values - before).abs() <= TOLERANCE * values).all():
                break
            vectors = _orthonormal(backward(rotation @ images))
        return values, _signed(vectors[:k]).reshape(k, *shape)


Product = Callable[[Tensor], Tensor]


def _products(unet: SplitUNet, encoded: Encoded, width: int, mask: Tensor | None) -> tuple[Product, Product]:
    """Returns two functions: one maps V [width, D] to V J' [width, N], the other W [width, N] to W J [width, D].

    The first takes one forward-mode pass, the second one backward pass. The point of linearisation is repeated `width`
    times, so that a batch of the decoder is a block of vectors.
    """
    # If the caller runs in inference mode, the given tensors are inference tensors. Copies made here are ordinary.
    repeated = Encoded(
        encoded.h.float().repeat(width, 1, 1, 1),
        tuple(skip.repeat(width, 1, 1, 1) for skip in encoded.skips),
        encoded.emb.repeat(width, 1),
        encoded.x.repeat(width, 1, 1, 1),
        encoded.t,
    )

    def eps(h: Tensor) -> Tensor:
        predicted = unet.decode(repeated, h)
        return predicted if mask is None else predicted * mask

    def forward(vectors: Tensor) -> Tensor:
        # Only the plain form of attention has a forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH):
            tangent = torch.func.jvp(eps, (repeated.h,), (vectors.reshape(repeated.h.shape),))[1]
        return tangent.flatten(1).detach()

    def backward(images: Tensor) -> Tensor:
        with torch.enable_grad():
            h = repeated.h.clone().requires_grad_()
            output = eps(h)
            [gradient] = torch.autograd.grad(output, h, images.reshape(output.shape))
        return gradient.flatten(1)

    return forward, backward


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T)[0].T


def _signed(rows: Tensor) -> Tensor:
    """Returns rows [k, D], each with the sign that makes its element of largest magnitude positive."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign()


class JacobianSums:
    """Sums over the Jacobians of images at T timesteps, and over h. They merge.

    `rows` are the leading rows of all J, stacked over images and timesteps. Their right singular vectors are the shifts
    to which eps responds most on average. `spread` is a sketch of how far h varies, which sets the unit of strength.
    """

    def __init__(self) -> None:
        self.spread = PcaSketch(KEPT_ROWS)
        self.rows: Tensor | None = None  # [R, D]

    def add(self, h: Tensor, rows: Tensor) -> None:
        """Add an image by its h [T, C, h, w] and the leading rows [T, k, C, h, w] of its Jacobians.

        A row is a right singular vector times its singular value.
        """
        self.spread.add(h.flatten(1)[None])
        self._stack(rows.flatten(2).flatten(0, 1).float().cpu())

    def merge(self, other: "JacobianSums") -> None:
        """Add the sums of other images."""
        self.spread.merge(other.spread)
        if other.rows is not None:
            self._stack(other.rows)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the sums, to be stored."""
        rows = {} if self.rows is None else {"jacobian_rows": self.rows}
        return self.spread.tensors() | rows

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace these sums by stored ones."""
        self.spread.load(tensors)
        self.rows = tensors.get("jacobian_rows")

    def directions(self, k: int) -> tuple[Tensor, Tensor]:
        """Returns the leading k shifts [k, D] and their singular values [k].

        A shift is as long as the step between the means of the two halves of the images along it.

        Raises:
            ValueError: if there are fewer than k shifts, or fewer than two images, which do not show how far h varies.
        """
        if self.rows is None or k > len(self.rows):
            raise ValueError(f"{k} directions are asked for and there are {0 if self.rows is None else len(self.rows)}")
        if self.spread.count < 2:
            raise ValueError("how far h varies cannot be seen from fewer than two images")
        rows = self.rows[:k]
        values = rows.norm(dim=1)
        units = _signed(rows / values[:, None])
        spread = self.spread.deviation(units)
        return HALVES * spread[:, None] * units, values

    def _stack(self, rows: Tensor) -> None:
        stacked = rows if self.rows is None else torch.cat([self.rows, rows])
        self.rows = leading_rows(stacked[None], KEPT_ROWS)[0]
