"""Directions as normals of the boundaries of linear classifiers of h, one per timestep (Zhu et al. 2023)."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

Kind = Literal["logistic", "svm"]
LOSSES = {"logistic": "log_loss", "svm": "hinge"}
REGULARISATION = 1e-4


class ClassMoments:
    """Weighted means of both classes [2, T, D] and the spread of h, added up over batches.

    The classifiers centre and scale h by them.
    """

    def __init__(self) -> None:
        self.weight = np.zeros(2)
        self.sums: Any = 0.0
        self.squares: Any = 0.0

    def add(self, h: NDArray[np.float32], has: NDArray[np.bool_], weights: NDArray[np.float64]) -> None:
        """Add images with h [N, T, D], their class [N] and weight [N]."""
        each = np.stack([weights * ~has, weights * has])
        self.weight += each.sum(1)
        self.sums = self.sums + np.tensordot(each, h, 1)
        self.squares = self.squares + weights @ np.square(h).sum(2, dtype=np.float64)

    def means(self) -> NDArray[np.float64]:
        return self.sums / self.weight[:, None, None]

    def centre(self) -> NDArray[np.float64]:
        """Returns the point [T, D] halfway between the means of the classes."""
        return self.means().mean(0)

    def radius(self) -> NDArray[np.float64]:
        """Returns the root mean square distance [T] of h from its mean over all images."""
        total = self.weight.sum()
        mean = self.sums.sum(0) / total
        return np.sqrt(np.maximum(self.squares / total - np.square(mean).sum(1), 1e-12))


class Classifiers:
    """One linear classifier per timestep, trained by stochastic gradients.

    Memory does not grow with the number of images. h is centred and divided by its radius. The radius is one number per
    timestep, so the geometry of h-space is kept.
    """

    def __init__(self, kind: Kind, moments: ClassMoments, seed: int) -> None:
        self.step = moments.means()[1] - moments.means()[0]
        self.centre = moments.centre().astype(np.float32)
        self.radius = moments.radius().astype(np.float32)
        self.models = [
            SGDClassifier(loss=LOSSES[kind], alpha=REGULARISATION, average=True, random_state=seed) for _ in self.radius
        ]

    def learn(self, h: NDArray[np.float32], has: NDArray[np.bool_], weights: NDArray[np.float64]) -> None:
        """Train all classifiers on a batch once: h [N, T, D], classes [N], weights [N]."""
        scaled = self._scaled(h)
        for t, model in enumerate(self.models):
            model.partial_fit(scaled[:, t], has, classes=[False, True], sample_weight=weights)

    def hits(self, h: NDArray[np.float32], has: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Returns the number [T] of images of a batch that the classifier of each timestep gets right."""
        scaled = self._scaled(h)
        return np.array([np.sum(model.predict(scaled[:, t]) == has) for t, model in enumerate(self.models)])

    def directions(self) -> NDArray[np.float64]:
        """Returns the normals [T, D], each as long as the step between the means of the classes along it."""
        normals = np.stack([model.coef_[0] for model in self.models])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return normals * np.sum(normals * self.step, axis=1, keepdims=True)

    def _scaled(self, h: NDArray[np.float32]) -> NDArray[np.float32]:
        return (h - self.centre) / self.radius[:, None]
