"""What a net predicts of x_t: its noise, its image, or v. The process works with the noise."""

from math import sqrt
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Prediction = Literal["epsilon", "sample", "v_prediction"]
"""What a net predicts, in diffusers' words.

With x_t = sqrt(a) x_0 + sqrt(1 - a) eps: epsilon is eps, sample is x_0, and v_prediction is
v = sqrt(a) eps - sqrt(1 - a) x_0 (Salimans & Ho 2022, section 4).
"""


def noise_from(prediction: Prediction, predicted: "Tensor", x: "Tensor", a: float) -> "Tensor":
    """eps [B, C, H, W], given what a net predicted of x_t at level `a`."""
    if prediction == "sample":
        return (x - sqrt(a) * predicted) / sqrt(1 - a)
    if prediction == "v_prediction":
        return sqrt(a) * predicted + sqrt(1 - a) * x
    return predicted


def prediction_from(prediction: Prediction, eps: "Tensor", x: "Tensor", a: float) -> "Tensor":
    """What a net predicted of x_t at level `a`, given the eps that follows from it: the inverse of `noise_from`."""
    if prediction == "sample":
        return (x - sqrt(1 - a) * eps) / sqrt(a)
    if prediction == "v_prediction":
        return (eps - sqrt(1 - a) * x) / sqrt(a)
    return eps
