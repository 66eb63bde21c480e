"""Principal components of h over many images, streamed and mergeable.

A sketch holds the mean and the leading singular rows of the centred data that was added. Two sketches merge by the
singular value decomposition of both, with the difference of their means as one more row (Ross et al. 2008). The merge
is exact while the data has no more than `rank` directions. Otherwise it loses everything beyond the leading `rank`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

NEGLIGIBLE = 1e-7
"""A share of the variance that rounding alone may make."""


class PcaSketch:
    """The mean [G, D], scaled principal rows [G, R, D] and total sum of squares [G] of N samples [N, G, D].

    The G groups are analysed separately: there is one per timestep, or a single one for all timesteps jointly.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.count = 0
        self.mean: Tensor | None = None
        self.rows: Tensor | None = None
        self.total: Tensor | None = None
        self._waiting: list[Tensor] = []

    def add(self, samples: Tensor) -> None:
        """Add samples [B, G, D]. They wait until there are at least `rank` of them, and are then added together."""
        self._waiting.extend(samples.float().cpu())
        if len(self._waiting) >= self.rank:
            self._take_in()

    def merge(self, other: "PcaSketch") -> None:
        """Add the data of another sketch."""
        self._take_in()
        other._take_in()
        if other.mean is None:
            return
        if self.mean is None:
            self.count, self.mean, self.rows, self.total = other.count, other.mean, other.rows, other.total
            return
        assert self.rows is not None and other.rows is not None and self.total is not None and other.total is not None
        both = self.count + other.count
        shift = other.mean - self.mean
        weight = self.count * other.count / both
        stacked = torch.cat([self.rows, other.rows, math.sqrt(weight) * shift[:, None]], dim=1)
        self.total = self.total + other.total + weight * shift.double().square().sum(1)
        self.mean = self.mean + shift * (other.count / both)
        self.rows = leading_rows(stacked, self.rank)
        self.count = both

    def tensors(self) -> dict[str, Tensor]:
        """Returns the sketch, to be stored. Before the first sample it is the count alone."""
        self._take_in()
        named = {"count": torch.tensor(self.count), "mean": self.mean, "rows": self.rows, "total": self.total}
        return {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace this sketch by a stored one of the same rank."""
        self._waiting = []
        self.count = int(tensors["count"])
        self.mean, self.rows, self.total = (tensors.get(name) for name in ("mean", "rows", "total"))

    def components(self, k: int) -> tuple[Tensor, Tensor]:
        """Returns the leading k components [k, G, D] and the share [k, G] of the variance that each explains.

        A component is a unit vector times the standard deviation along it. Signs agree from one group to the next.

        Raises:
            ValueError: if the data or the sketch has fewer than k components.
        """
        self._take_in()
        if self.rows is None or self.total is None or k > min(self.rows.shape[1], self.count - 1):
            have = 0 if self.rows is None else min(self.rows.shape[1], self.count - 1)
            raise ValueError(f"{k} components are asked for and the data has {have}")
        scaled = self.rows[:, :k] / math.sqrt(self.count - 1)
        share = self.rows[:, :k].double().square().sum(2) / self.total[:, None]
        return _signs_aligned(scaled).transpose(0, 1), share.T.float()

    def leading(self) -> Tensor:
        """Returns all components [k, G, D] along which the data varies at all, as `components` does.

        Raises:
            ValueError: if the data has fewer than two samples, or all are alike.
        """
        self._take_in()
        most = 0 if self.rows is None else min(self.rows.shape[1], self.count - 1)
        if most:
            components, shares = self.components(most)
            if (varies := (shares > NEGLIGIBLE).all(1)).any():
                return components[varies]
        raise ValueError("the images are alike")

    def deviation(self, units: Tensor) -> Tensor:
        """Returns the standard deviation [K] of the samples along unit vectors [K, D].

        It is the root mean square over the groups. Variance beyond the sketch's rank is left out.
        """
        self._take_in()
        assert self.rows is not None
        along = torch.einsum("grd,kd->gkr", self.rows, units)
        return (along.square().sum(2).mean(0) / (self.count - 1)).sqrt()

    def _take_in(self) -> None:
        if not self._waiting:
            return
        samples = torch.stack(self._waiting, dim=1)  # [G, B, D]
        self._waiting = []
        new = PcaSketch(self.rank)
        new.count, new.mean = samples.shape[1], samples.mean(1)
        centred = samples - new.mean[:, None]
        new.rows, new.total = leading_rows(centred, self.rank), centred.double().square().sum((1, 2))
        self.merge(new)


def leading_rows(rows: Tensor, rank: int) -> Tensor:
    """Returns the leading `rank` rows S V' [G, R, D] of [G, N, D].

    They come from the Gram matrix, because N is small and D is large.
    """
    _, left = torch.linalg.eigh(rows.double() @ rows.double().transpose(1, 2))
    kept = left.flip(2)[:, :, : min(rank, rows.shape[1])]
    return (kept.transpose(1, 2) @ rows.double()).float()


def _signs_aligned(rows: Tensor) -> Tensor:
    """Returns rows [G, k, D], each with the sign that agrees with the same row of the group before."""
    aligned = [rows[0]]
    for row in rows[1:]:
        agreement = (row * aligned[-1]).sum(1, keepdim=True)
        aligned.append(torch.where(agreement < 0, -row, row))
    return torch.stack(aligned)
