"""FID and KID, the distances of two sets of images, from features that are streamed and added up."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from asyrp.errors import UserError

RESERVOIR = 10_000
"""The number of images whose features are kept for KID."""

SUBSETS, SUBSET_SIZE = 100, 1000
"""KID is the mean over SUBSETS random subsets of SUBSET_SIZE images (Binkowski et al. 2018).

If one set keeps fewer images, a subset has as many as that set.
"""


class FeatureSums:
    """The sums over the features of any number of images that FID and KID are computed from.

    `total` [D] is their sum and `outer` [D, D] the sum of their outer products, both float64. `reservoir` [R, D] holds
    the features of the `size` images with the lowest `ranks` [R], float32.
    """

    def __init__(self, size: int = RESERVOIR) -> None:
        self.size = size
        self._sums: dict[str, Tensor] = {}  # empty before the first image
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, ranks: Tensor) -> None:
        """Add images with features [N, D] and ranks [N], int64. They wait for `size` calls and are then added together.

        A rank is any number that belongs to the image and is as good as random.
        """
        self._waiting.append((features, ranks))
        if len(self._waiting) >= self.size:
            self._take_in()

    def merge(self, other: "FeatureSums") -> None:
        """Add the sums of other images."""
        self._take_in()
        self._merge(other.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Returns the sums, to be stored: count, total, outer, ranks and reservoir.

        Before the first image there are none.
        """
        self._take_in()
        return dict(self._sums)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace these sums by stored ones."""
        self._sums, self._waiting = dict(tensors), []

    @property
    def images(self) -> int:
        return int(self.tensors().get("count", 0))

    def _take_in(self) -> None:
        if not self._waiting:
            return
        features, ranks = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        exact = features.double()
        kept = ranks.argsort()[: self.size]
        self._merge(
            {
                "count": torch.tensor(len(features)),
                "total": exact.sum(0),
                "outer": exact.T @ exact,
                "ranks": ranks[kept],
                "reservoir": features[kept].float(),
            }
        )

    def _merge(self, other: dict[str, Tensor]) -> None:
        if not self._sums or not other:
            self._sums = self._sums or other
            return
        ranks, rows = (torch.cat([self._sums[name], other[name]]) for name in ("ranks", "reservoir"))
        kept = ranks.argsort()[: self.size]
        added = {name: self._sums[name] + other[name] for name in ("count", "total", "outer")}
        self._sums = added | {"ranks": ranks[kept], "reservoir": rows[kept]}


@dataclass(frozen=True)
class SetDistance:
    """FID, KID, the standard deviation of KID over its subsets, and the number of images in each set."""

    fid: float
    kid: float
    kid_std: float
    images: tuple[int, int]


class PrecomputedFeatures(torch.nn.Module):
    """Takes the place of the net that torchmetrics expects. It is given features [N, D] and returns them."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def set_distance(a: FeatureSums, b: FeatureSums) -> SetDistance:
    """FID (Heusel et al. 2017) and KID between two sets.

    Raises:
        UserError: if a set has fewer than two images.
    """
    if min(a.images, b.images) < 2:
        raise UserError(f"FID and KID need two images on each side, and there are {a.images} and {b.images}")
    first, second = a.tensors(), b.tensors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics warns of states that it did not add up itself
        kid, kid_std = _kid(first["reservoir"], second["reservoir"])
        return SetDistance(_fid(first, second), kid, kid_std, (a.images, b.images))


def _fid(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    fid = FrechetInceptionDistance(feature=PrecomputedFeatures(len(a["total"])))
    for side, sums in (("real", a), ("fake", b)):  # sets the states of torchmetrics, which were added up elsewhere
        setattr(fid, f"{side}_features_sum", sums["total"])
        setattr(fid, f"{side}_features_cov_sum", sums["outer"])
        setattr(fid, f"{side}_features_num_samples", sums["count"])
    fid.orig_dtype = torch.float64
    return float(fid.compute())


def _kid(a: Tensor, b: Tensor) -> tuple[float, float]:
    size = min(SUBSET_SIZE, len(a), len(b))
    kid = KernelInceptionDistance(feature=PrecomputedFeatures(a.shape[1]), subsets=SUBSETS, subset_size=size)
    kid.update(a.double(), real=True)
    kid.update(b.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, std = kid.compute()
    return float(mean), float(std)
