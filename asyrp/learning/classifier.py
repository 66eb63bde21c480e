"""Directions from linear classifiers of h, one per timestep: the normals of their boundaries (Zhu et al. 2023)."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

Kind = Literal["logistic", "svm"]
LOSSES = {"logistic": "log_loss", "svm": "hinge"}
REGULARISATION = 1e-4


class ClassMoments:
    """Weighted means of both classes [2, T, D] and the spread of h, over batches: what the classifiers' scale is."""

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
        """The point [T, D] between the classes."""
        return self.means().mean(0)

    def radius(self) -> NDArray[np.float64]:
        """Root mean square distance [T] of h from its mean over all images."""
        total = self.weight.sum()
        mean = self.sums.sum(0) / total
        return np.sqrt(np.maximum(self.squares / total - np.square(mean).sum(1), 1e-12))


class Classifiers:
    """One linear classifier per timestep, trained by stochastic gradients: memory does not grow with the images.

    h is centred and divided by its radius, a number, so that the geometry of h-space is kept.
    """

    def __init__(self, kind: Kind, moments: ClassMoments, seed: int) -> None:
        self.step = moments.means()[1] - moments.means()[0]
        self.centre = moments.centre().astype(np.float32)
        self.radius = moments.radius().astype(np.float32)
        self.models = [
            SGDClassifier(loss=LOSSES[kind], alpha=REGULARISATION, average=True, random_state=seed) for _ in self.radius
        ]

    def learn(self, h: NDArray[np.float32], has: NDArray[np.bool_], weights: NDArray[np.float64]) -> None:
        """One pass over a batch: h [N, T, D], classes [N], weights [N]."""
        scaled = self._scaled(h)
        for t, model in enumerate(self.models):
            model.partial_fit(scaled[:, t], has, classes=[False, True], sample_weight=weights)

    def hits(self, h: NDArray[np.float32], has: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of a batch each timestep's classifier gets right [T]."""
        scaled = self._scaled(h)
        return np.array([np.sum(model.predict(scaled[:, t]) == has) for t, model in enumerate(self.models)])

    def directions(self) -> NDArray[np.float64]:
        """The normals [T, D], each as long as the step between the classes' means along it."""
        normals = np.stack([model.coef_[0] for model in self.models])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return normals * np.sum(normals * self.step, axis=1, keepdims=True)

    def _scaled(self, h: NDArray[np.float32]) -> NDArray[np.float32]:
        return (h - self.centre) / self.radius[:, None]
