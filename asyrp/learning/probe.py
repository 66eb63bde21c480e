"""Probes: linear readings of a label off h, which give labels to images that have none.

A probe is learned from few labelled images at one low timestep, by a sparse regression (the lasso) on the principal
scores of h. The components come from all images, so the images without labels say in which ways h varies, and the
labelled ones only choose among them. Beside it stands ridge regression on h of the labelled images alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LassoCV
from sklearn.model_selection import KFold
from torch import Tensor

from asyrp.learning.held_out import (
    FOLDS,
    Auc,
    Weights,
    auc,
    classes,
    principal_coordinates,
    ridge_weights,
    unseen_scores,
)


@dataclass(frozen=True)
class Components:
    """Principal components of h: the `mean` [D], and `axes` [R, D], each as long as the standard deviation along it."""

    mean: Tensor
    axes: Tensor

    def scores(self, h: Tensor) -> Tensor:
        """Returns the scores [N, R] of h [N, D], in standard deviations."""
        return (h.float() - self.mean) @ self._readers().T

    def reader(self, weights: Tensor) -> Tensor:
        """Returns the vector [D] whose product with h, less its mean, is the sum of its scores times `weights` [R]."""
        return weights @ self._readers()

    def _readers(self) -> Tensor:
        return self.axes / self.axes.square().sum(1, keepdim=True)


@dataclass(frozen=True)
class Probe:
    """Reads a label off h [D]: the value is `scale` times the product of `reader` [D] and h, plus `offset`.

    For a binary label, `values` are its values, and the sign decides between them.
    """

    reader: Tensor
    offset: float
    scale: float
    values: tuple[float, float] | None

    def read(self, h: Tensor) -> float:
        value = self.scale * float(self.reader @ h.float()) + self.offset
        return value if self.values is None else self.values[value > 0]


@dataclass(frozen=True)
class FittedProbe:
    """A probe, and how well probes that were learned in the same way told the label of images they had not seen."""

    probe: Probe
    held_out: Auc


@dataclass(frozen=True)
class LabelledImages:
    """Images to learn probes from: their principal scores [N, R], h [N, D] (None: too large), and folds [N].

    Images of a fold go together: none of them is judged by what was learned from another.
    """

    components: Components
    scores: NDArray[np.float64]
    h: NDArray[np.float32] | None
    folds: NDArray[np.int64]

    def probe(self, values: NDArray[np.float64]) -> FittedProbe:
        """Returns the better of two probes of a label with these values [N].

        The lasso chooses among the components of all images. Ridge regression weighs those of the labelled images.
        """
        found = [self._fitted(lasso_weights, self.scores, values, self.components.reader, self.components.mean)]
        if self.h is not None:
            coordinates, axes = self._own_coordinates
            mean = torch.from_numpy(self.h.mean(0, dtype=np.float64)).float()
            found.append(self._fitted(ridge_weights, coordinates, values, torch.from_numpy(axes).float().T.mv, mean))
        return max(found, key=lambda fitted: fitted.held_out.value)

    @cached_property
    def _own_coordinates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert self.h is not None
        return principal_coordinates(self.h)

    def _fitted(
        self,
        weights: Weights,
        x: NDArray[np.float64],
        values: NDArray[np.float64],
        reader: Callable[[Tensor], Tensor],
        mean: Tensor,
    ) -> FittedProbe:
        """Returns the probe by one way to learn weights [R] of coordinates [N, R]; `reader` makes of them one of h."""
        unseen = unseen_scores(weights, x, values, self.folds)
        reads = reader(torch.from_numpy(weights(x, values)).float())
        distinct = np.unique(values)
        if len(distinct) == 2:
            threshold, scale = float(np.quantile(unseen, (values == distinct[0]).mean())), 1.0
            pair = (float(distinct[0]), float(distinct[1]))
        else:
            scale = float(values.std() / max(unseen.std(), 1e-12))
            threshold, pair = float(unseen.mean() - values.mean() / scale), None
        offset = -scale * (threshold + float(reads @ mean))
        return FittedProbe(Probe(reads, offset, scale, pair), auc(unseen, classes(values)))


def lasso_weights(z: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the weights [R] of principal scores [N, R] that predict values [N], most of them 0."""
    lasso = LassoCV(cv=KFold(FOLDS, shuffle=True, random_state=0), tol=1e-3, max_iter=20_000)
    return lasso.fit(z, values).coef_
