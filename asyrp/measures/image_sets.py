"""How far two sets of images are from each other: FID and KID of features that are streamed and added up."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from asyrp.errors import UserError

RESERVOIR = 10_000
"""Images whose features are kept for KID."""

SUBSETS, SUBSET_SIZE = 100, 1000
"""KID is the mean over so many random subsets of so many images, or of as many as there are (Binkowski et al. 2018)."""


class FeatureSums:
    """What FID and KID need of the features [D] of any number of images: their sum and the sum of their outer products,
    float64, and the features of the RESERVOIR images of the lowest rank. Sums of parts merge to those of the whole."""

    def __init__(
        self, count: int, total: Tensor, outer: Tensor, ranks: Tensor, reservoir: Tensor, size: int = RESERVOIR
    ) -> None:
        self.count, self.total, self.outer = count, total, outer
        self.ranks, self.reservoir, self.size = ranks, reservoir, size

    @classmethod
    def of(cls, features: Tensor, ranks: Tensor, size: int = RESERVOIR) -> "FeatureSums":
        """Of features [N, D] and ranks [N], int64: any numbers that belong to an image and are as good as random."""
        exact = features.double()
        kept = ranks.argsort()[:size]
        return cls(len(features), exact.sum(0), exact.T @ exact, ranks[kept], features[kept].float(), size)

    def merged(self, other: "FeatureSums") -> "FeatureSums":
        """The sums over both."""
        ranks, rows = torch.cat([self.ranks, other.ranks]), torch.cat([self.reservoir, other.reservoir])
        kept = ranks.argsort()[: self.size]
        count, total, outer = self.count + other.count, self.total + other.total, self.outer + other.outer
        return FeatureSums(count, total, outer, ranks[kept], rows[kept], self.size)

    def tensors(self) -> dict[str, Tensor]:
        """The sums, to be stored."""
        return {
            "count": torch.tensor(self.count),
            "total": self.total,
            "outer": self.outer,
            "ranks": self.ranks,
            "reservoir": self.reservoir,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FeatureSums":
        return cls(**{**tensors, "count": int(tensors["count"])})  # type: ignore[arg-type]


@dataclass(frozen=True)
class SetDistance:
    """FID, KID and the standard deviation of KID over its subsets, and the images in both sets."""

    fid: float
    kid: float
    kid_std: float
    images: tuple[int, int]


class Features(torch.nn.Module):
    """In place of a net: what torchmetrics is given are features [N, D] already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def set_distance(a: FeatureSums, b: FeatureSums) -> SetDistance:
    """FID (Heusel et al. 2017) and KID between two sets.

    Raises:
        UserError: if one has fewer than two images.
    """
    if min(a.count, b.count) < 2:
        raise UserError(f"FID and KID need two images on each side, and there are {a.count} and {b.count}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics on states that it did not add up itself
        return SetDistance(_fid(a, b), *_kid(a.reservoir, b.reservoir), (a.count, b.count))


def _fid(a: FeatureSums, b: FeatureSums) -> float:
    fid = FrechetInceptionDistance(feature=Features(len(a.total)))
    for side, sums in (("real", a), ("fake", b)):  # its states, added up elsewhere
        setattr(fid, f"{side}_features_sum", sums.total)
        setattr(fid, f"{side}_features_cov_sum", sums.outer)
        setattr(fid, f"{side}_features_num_samples", torch.tensor(sums.count))
    fid.orig_dtype = torch.float64
    return float(fid.compute())


def _kid(a: Tensor, b: Tensor) -> tuple[float, float]:
    size = min(SUBSET_SIZE, len(a), len(b))
    kid = KernelInceptionDistance(feature=Features(a.shape[1]), subsets=SUBSETS, subset_size=size)
    kid.update(a.double(), real=True)
    kid.update(b.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, std = kid.compute()
    return float(mean), float(std)
