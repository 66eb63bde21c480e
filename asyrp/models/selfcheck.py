"""Does a net predict the noise of its schedule? Asked before a run spends hours on one that does not.

A few images are noised to several levels, and the net's error is held against that of the best linear filter for
these images: a working net is far below it on images of its own domain. Then the ways in which a working net is
commonly fed or read wrongly are tried; one that makes the error several times smaller is the mistake.
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
from asyrp.diffusion.process import predict
from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.errors import UserError
from asyrp.models.adm import fuse_qkv, split_qkv
from asyrp.models.load import Model

LEVELS = (100, 300, 500, 900)
PROBE = 300
"""The timestep at which mistakes are tried: noise and image are both well visible there, under any schedule."""

FLOOR = 0.003
"""Mean squared error that no net is refused for: near t = 999 the best possible is next to nothing."""

OWN_SLACK, STAND_IN_SLACK = 1.25, 5.0
"""How many times the linear filter's error passes: on images of the net's own domain, and on others. Measured on
the bundled net: 0.06 to 0.5 on its own domain, 0.5 to 2 on photographs and resized faces."""

CLEARLY_BETTER, WORKS = 2.0, 1.0
"""A mistake is named if without it the error is half as large, and below the linear filter's."""

SCHEDULES = {"linear": NoiseSchedule.linear(), "cosine": NoiseSchedule.cosine()}
HEAD_WIDTHS = (16, 32, 64, 128)

Predictor = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class LevelCheck:
    """Mean squared errors of eps at one timestep, and the largest that passes."""

    t: int
    error: float
    linear_filter: float
    allowed: float

    @property
    def passes(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class Report:
    """What was measured. `mistake` is a sentence where something is wrong, None for a working net."""

    levels: tuple[LevelCheck, ...]
    mistake: str | None

    @property
    def passes(self) -> bool:
        return self.mistake is None

    def refuse_a_failure(self, name: str) -> None:
        """Raises UserError, in one sentence, unless the net passed."""
        if self.mistake:
            raise UserError(f"model {name} fails its self-check: {self.mistake} (--no-check to use it nevertheless)")


@torch.inference_mode()
def check(model: Model, images: Tensor, own_domain: bool) -> Report:
    """Check a net on images [B, 3, H, W] in [-1, 1], of the domain it was trained on or (less sharply) any other.

    Costs 9 evaluations of the net on the batch; more, for other heads, only if it fails.
    """
    probes = _Probes(images.to(model.unet.device), model.schedule)
    levels = tuple(probes.level(model.unet, t, OWN_SLACK if own_domain else STAND_IN_SLACK) for t in LEVELS)
    plain = next(level.error / level.linear_filter for level in levels if level.t == PROBE)
    failing = [level for level in levels if not level.passes]
    mistake = _best_explanation(_readings(model, probes), plain)
    if mistake is None and failing:
        mistake = _best_explanation(_other_heads(model, probes), plain) or _damage(failing)
    return Report(levels, mistake)


class _Probes:
    """Noised images, the same for every predictor; noise is a function of the image's index and the timestep."""

    def __init__(self, images: Tensor, schedule: NoiseSchedule) -> None:
        self.images, self.schedule = images, schedule
        self.keys = [noise_key(0, str(index), "selfcheck") for index in range(len(images))]

    def error(self, predictor: Predictor, t: int) -> float:
        """Mean squared error of the predicted eps at timestep t; infinite where it is not finite."""
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
        """The error at PROBE in units of the linear filter's: comparable over ways of scaling and noising."""
        return self.error(predictor, PROBE) / self.linear_filter(PROBE)


def _best_explanation(errors: dict[str, float], plain: float) -> str | None:
    """The mistake without which the net would work, and clearly better than it does (`plain`); None if none is."""
    best = min(errors, key=lambda mistake: errors[mistake], default=None)
    return best if best and errors[best] < min(plain / CLEARLY_BETTER, WORKS) else None


def _readings(model: Model, probes: _Probes) -> dict[str, float]:
    """The ways in which a working net is commonly fed or read wrongly, and the net's errors were it so."""
    net = partial(predict, model.unet)
    a = model.schedule.level(PROBE)
    noisy, clean = (1 - a) ** 0.5, a**0.5
    errors = {
        "it predicts x_0, not the noise: asyrp edits with noise-predicting (epsilon) models": probes.at_probe(
            lambda x, t: (x - clean * net(x, t)) / noisy
        ),
        "it predicts v, not the noise: asyrp edits with noise-predicting (epsilon) models": probes.at_probe(
            lambda x, t: clean * net(x, t) + noisy * x
        ),
        "it takes its colours in the order BGR, asyrp gives it RGB: swap the channels of conv_in and conv_out": (
            probes.at_probe(lambda x, t: net(x.flip(1), t).flip(1))
        ),
        "it takes pixels in [0, 1], asyrp gives it [-1, 1]": (
            _Probes((probes.images + 1) / 2, model.schedule).at_probe(net)
        ),
    }
    for name, other in SCHEDULES.items():
        if not other.is_close_to(model.schedule):
            mistake = f"it was trained on the {name} schedule and is given another: mend its scheduler_config.json"
            errors[mistake] = _Probes(probes.images, other).at_probe(net)
    return errors


def _other_heads(model: Model, probes: _Probes) -> dict[str, float]:
    """Other orders of the fused qkv rows and other widths of the heads, and the net's errors were it converted so."""
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
        other = HSpaceUNet(_with_heads(unet, now, made_new, width, is_new))
        order = "new" if is_new else "legacy"
        mistake = f"its attention fits heads of {width} channels in the {order} order of qkv: convert it so"
        errors[mistake] = min(probes.at_probe(partial(predict, other)), errors.get(mistake, math.inf))
    return errors


def _with_heads(unet: Any, made_width: int, made_new: bool, width: int, new: bool) -> Any:
    """A copy whose qkv, split as heads `made_width` wide in one order, are split as heads `width` wide in another."""
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
        "weights are damaged, or it is no epsilon model of this schedule, or these images are nothing like its domain"
    )
