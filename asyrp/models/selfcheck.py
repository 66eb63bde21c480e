"""Checks that a net predicts the noise of its schedule, before a run spends hours on one that does not.

The check adds noise to a few images at several levels. It compares the net's error with that of the best linear filter
for these images: on images of its own domain, a working net is far below it. It then tries the common mistakes in how a
net is fed or its output is read. If correcting one of them makes the error several times smaller, it is the cause.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.diffusion.prediction import Prediction, noise_from, prediction_from
from asyrp.diffusion.process import predict
from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.errors import UserError
from asyrp.models.adm import fuse_qkv, split_qkv
from asyrp.models.load import Model

LEVELS = (100, 300, 500, 900)
PROBE = 300
"""The timestep at which mistakes are tried. Under any schedule, noise and image are both clearly visible there."""

FLOOR = 0.003
"""A mean squared error up to this always passes: near t = 999 the best possible error is almost zero."""

OWN_SLACK, STAND_IN_SLACK = 1.25, 5.0
"""The largest error that passes, in units of the linear filter's: on images of the net's own domain, and on others.
The bundled net measures 0.06 to 0.5 on its own domain, and 0.5 to 2 on photographs and resized faces."""

CLEARLY_BETTER, WORKS = 2.0, 1.0
"""A mistake is named if the error without it is less than half as large, and below the linear filter's."""

PREDICTIONS: dict[Prediction, str] = {"epsilon": "the noise", "sample": "x_0", "v_prediction": "v"}
SCHEDULES = {"linear": NoiseSchedule.linear(), "cosine": NoiseSchedule.cosine()}
HEAD_WIDTHS = (16, 32, 64, 128)

Predictor = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class LevelCheck:
    """Mean squared errors of eps at one timestep: the net's, the linear filter's, and the largest that passes."""

    t: int
    error: float
    linear_filter: float
    allowed: float

    @property
    def passes(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class SelfCheckReport:
    """The result of the check. `mistake` is a sentence that says what is wrong, or None for a working net."""

    levels: tuple[LevelCheck, ...]
    mistake: str | None

    @property
    def passes(self) -> bool:
        return self.mistake is None

    def refuse_a_failure(self, name: str) -> None:
        """Raise UserError, in one sentence, unless the net passed."""
        if self.mistake:
            raise UserError(f"model {name} fails its self-check: {self.mistake} (--no-check to use it nevertheless)")


@torch.inference_mode()
def check(model: Model, images: Tensor, own_domain: bool) -> SelfCheckReport:
    """Check a net on images [B, 3, H, W] in [-1, 1].

    With `own_domain` they are of the domain that the net was trained on, and the check is stricter. It takes 9
    evaluations of the net on the batch. Other attention heads take more evaluations, and are tried only if it fails.
    """
    probes = _Probes(images.to(model.unet.device), model.schedule)
    levels = tuple(probes.level(model.unet, t, OWN_SLACK if own_domain else STAND_IN_SLACK) for t in LEVELS)
    plain = next(level.error / level.linear_filter for level in levels if level.t == PROBE)
    failing = [level for level in levels if not level.passes]
    mistake = _best_explanation(_readings(model, probes), plain)
    if mistake is None and failing:
        mistake = _best_explanation(_other_heads(model, probes), plain) or _damage(failing)
    return SelfCheckReport(levels, mistake)


class _Probes:
    """Noised images, the same for every predictor: the noise depends only on the image's index and the timestep."""

    def __init__(self, images: Tensor, schedule: NoiseSchedule) -> None:
        self.images, self.schedule = images, schedule
        self.keys = [noise_key(0, str(index), "selfcheck") for index in range(len(images))]

    def error(self, predictor: Predictor, t: int) -> float:
        """Mean squared error of the predicted eps at timestep t; infinity if it is not finite."""
        a = self.schedule.level(t)
        eps = boosting_noise(self.keys, t, tuple(self.images.shape[1:]), self.images.device)
        error = (predictor(a**0.5 * self.images + (1 - a) ** 0.5 * eps, t) - eps).square().mean().item()
        return error if math.isfinite(error) else math.inf

    def linear_filter(self, t: int) -> float:
        """The error of the Wiener filter that knows the images' mean power spectrum."""
        a = self.schedule.level(t)
        power = torch.fft.fft2(self.images.float(), norm="ortho").abs().square().mean(0)
        return (a * power / (a * power + 1 - a)).mean().item()

    def level(self, unet: HSpaceUNet, t: int, slack: float) -> LevelCheck:
        linear = self.linear_filter(t)
        return LevelCheck(t, self.error(partial(predict, unet), t), linear, max(slack * linear, FLOOR))

    def at_probe(self, predictor: Predictor) -> float:
        """The error at PROBE in units of the linear filter's, which can be compared across scalings and schedules."""
        return self.error(predictor, PROBE) / self.linear_filter(PROBE)


def _best_explanation(errors: dict[str, float], plain: float) -> str | None:
    """The mistake whose correction makes the net work and clearly better than its error `plain`; None if there is none.

    `errors` maps each mistake to the net's error without it.
    """
    best = min(errors, key=lambda mistake: errors[mistake], default=None)
    return best if best and errors[best] < min(plain / CLEARLY_BETTER, WORKS) else None


def _readings(model: Model, probes: _Probes) -> dict[str, float]:
    """Common mistakes in how a net is fed or its output is read, each with the net's error without it."""
    net = partial(predict, model.unet)
    a, said = model.schedule.level(PROBE), model.unet.prediction
    errors = {
        "it takes its colours in the order BGR, asyrp gives it RGB: swap the channels of conv_in and conv_out": (
            probes.at_probe(lambda x, t: net(x.flip(1), t).flip(1))
        ),
        "it takes pixels in [0, 1], asyrp gives it [-1, 1]": (
            _Probes((probes.images + 1) / 2, model.schedule).at_probe(net)
        ),
    }
    for prediction, name in PREDICTIONS.items():
        if prediction != said:
            mistake = (
                f"it predicts {name}, and its scheduler_config.json says {said}: set prediction_type to {prediction}"
            )
            errors[mistake] = probes.at_probe(partial(_read_as, model.unet, prediction, a))
    for name, other in SCHEDULES.items():
        if not other.is_close_to(model.schedule):
            mistake = f"it was trained on the {name} schedule and is given another: mend its scheduler_config.json"
            errors[mistake] = _Probes(probes.images, other).at_probe(net)
    return errors


def _read_as(unet: HSpaceUNet, prediction: Prediction, a: float, x: Tensor, t: int) -> Tensor:
    """eps at level `a` if the net predicts something else than its config says."""
    predicted = prediction_from(unet.prediction, predict(unet, x, t), x, a)
    return noise_from(prediction, predicted, x, a)


def _other_heads(model: Model, probes: _Probes) -> dict[str, float]:
    """Other orders of the fused qkv rows and other widths of the heads, each with the error of a net converted so."""
    unet = model.unet.unet
    layers = [layer for layer in unet.modules() if isinstance(layer, Attention)]
    now = unet.config.attention_head_dim
    if not layers or now is None:
        return {}
    widths = [w for w in HEAD_WIDTHS if all(layer.to_q.out_features % w == 0 for layer in layers)]
    errors: dict[str, float] = {}
    for made_new, is_new, width in itertools.product((False, True), (False, True), widths):
        if width == now and made_new == is_new:
            continue
        changed = _with_heads(unet, now, made_new, width, is_new)
        other = HSpaceUNet(changed, model.unet.prediction, model.schedule)
        order = "new" if is_new else "legacy"
        mistake = f"its attention fits heads of {width} channels in the {order} order of qkv: convert it so"
        errors[mistake] = min(probes.at_probe(partial(predict, other)), errors.get(mistake, math.inf))
    return errors


def _with_heads(unet: Any, made_width: int, made_new: bool, width: int, new: bool) -> Any:
    """A copy of the net with other attention heads.

    The net's q, k and v were split from a fused tensor with heads of `made_width` channels, in the new order of rows if
    `made_new`. The copy's are split from the same fused tensor with `width` channels, in the new order if `new`.
    """
    unet = copy.deepcopy(unet)
    for layer in unet.modules():
        if isinstance(layer, Attention):
            heads = [layer.to_q, layer.to_k, layer.to_v]
            for name in ("weight", "bias"):
                fused = fuse_qkv([getattr(head, name) for head in heads], made_width, made_new)
                for head, part in zip(heads, split_qkv(fused, width, new), strict=True):
                    getattr(head, name).copy_(part)
            layer.scale *= (layer.to_q.out_features // layer.heads / width) ** 0.5
            layer.heads = layer.to_q.out_features // width
    return unet


def _damage(failing: Sequence[LevelCheck]) -> str:
    worst = max(failing, key=lambda level: level.error / level.allowed)
    return (
        f"at t = {worst.t} its error is {worst.error:.3g}, where a linear filter has {worst.linear_filter:.3g}: its "
        "weights are damaged, or it was not trained on this schedule, or these images are nothing like its domain"
    )
