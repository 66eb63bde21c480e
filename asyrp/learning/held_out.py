"""How well a label can be told from h, on images that were not learned from.

The label is told by ridge regression on h of a single timestep. The area under the ROC curve (AUC) is the chance that a
random image with the label gets a higher score than a random one without it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import RidgeCV

FOLDS = 5
CONFIDENCE = 2.576
"""The normal deviate of a one-sided 99.5 %."""

NEGLIGIBLE = 1e-9
"""A share of the largest variance that rounding alone may make."""

PENALTIES = np.logspace(-4, 2, 13)
"""Candidates for the penalty of ridge regression, in total variances of h."""

FIRST_GAIN, LAST_GAIN = 0.4, 0.94
"""Shares of the way of an AUC from chance to its best value. A label is settled between the timesteps of both."""

Weights = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Learns from images [N, D] with values [N] the weights [D] that predict the values."""


class Auc(NamedTuple):
    """An area under the ROC curve, with the ends of an interval that it lies in with 99 %."""

    value: float
    low: float
    high: float

    @property
    def beats_chance(self) -> bool:
        return self.low > 0.5

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def auc(scores: NDArray[np.float64], has: NDArray[np.bool_]) -> Auc:
    """Returns the AUC of scores [N] for a class [N], with its interval (Hanley & McNeil 1982, equations 1 and 2).

    A perfect AUC has the interval of one in which half an image is misjudged.
    """
    n_with, n_without = int(has.sum()), int((~has).sum())
    value = (rankdata(scores)[has].sum() - n_with * (n_with + 1) / 2) / (n_with * n_without)
    near = min(value, 1 - 0.5 / min(n_with, n_without))
    both_with, both_without = near / (2 - near), 2 * near**2 / (1 + near)
    spread = (
        near * (1 - near)
        + (n_with - 1) * (both_with - near**2)
        + (n_without - 1) * (both_without - near**2)
    )  # fmt: skip
    error = CONFIDENCE * math.sqrt(max(spread, 0) / (n_with * n_without))
    return Auc(float(value), max(float(value) - error, 0.0), min(float(value) + error, 1.0))


def classes(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which images [N] have a label: those with the larger of two values, or with more than the median.

    If most have the largest value, it is those with this value.
    """
    distinct = np.unique(values)
    if len(distinct) == 2:
        return values == distinct[1]
    above = values > np.median(values)
    return above if above.any() or len(distinct) < 2 else values == distinct[-1]


def held_out_auc(coordinates: NDArray[np.float64], values: NDArray[np.float64], folds: NDArray[np.int64]) -> Auc:
    """Returns how well a label with `values` [N] is told from h in principal coordinates [N, R].

    The images of a fold [N] get their scores from a ridge regression on all other images.
    """
    return auc(unseen_scores(ridge_weights, coordinates, values, folds), classes(values))


def unseen_scores(
    weights: Weights, x: NDArray[np.float64], values: NDArray[np.float64], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the scores [N] of images x [N, D], each by the weights that are learned without its fold."""
    scores = np.zeros(len(x))
    for fold in np.unique(folds):
        inside = folds == fold
        scores[inside] = x[inside] @ weights(x[~inside], values[~inside])
    return scores


def ridge_weights(x: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the weights [D] of a ridge regression of values [N] on x [N, D], with the penalty that does best."""
    return RidgeCV(PENALTIES * x.var(0).sum()).fit(x, values).coef_


def settling(timesteps: NDArray[np.int64], curve: NDArray[np.float64]) -> tuple[int, int] | None:
    """Returns the interval (t_start, t_edit) in which a label is settled, given its AUCs [T] at timesteps [T].

    Above it the label cannot be told yet, below it nothing new is learned about it. None: it cannot be told anywhere.
    """
    falling = IsotonicRegression(increasing=False).fit_transform(timesteps, curve)
    if falling.max() <= 0.5:
        return None
    gain = (falling - 0.5) / (falling.max() - 0.5)
    start, end = (int(timesteps[gain >= share].max()) for share in (FIRST_GAIN, LAST_GAIN))
    higher = timesteps[timesteps > end]
    return (start, end) if start > end or not len(higher) else (int(higher.min()), end)


def principal_coordinates(h: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns h [N, D] less its mean in coordinates [N, R] along its own principal axes [R, D], unit vectors."""
    centred = h.astype(np.float64) - h.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    varies = values > NEGLIGIBLE * max(values.max(), 1e-300)
    lengths = np.sqrt(values[varies])
    return vectors[:, varies] * lengths, (vectors[:, varies] / lengths).T @ centred
