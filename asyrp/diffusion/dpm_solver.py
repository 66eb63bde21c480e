"""DPM-Solver++(2M) in both directions of time, and edits that are anchored to the inversion.

The solver (Lu et al. 2022, DPM-Solver++, algorithm 2) integrates the ODE that DDIM integrates, to second order. With
lambda = ln(alpha / sigma), h = lambda' - lambda, and P the predicted image, one move is

    x' = (sigma' / sigma) x + alpha' (1 - e^-h) (P + (h / 2 h_before) (P - P_before))

where `before` is the point before, in the direction of the move. h is negative in an inversion. The move to the clean
image is x' = P.

An inversion visits points X_0 .. X_j, with the predictions P_0 .. P_j-1. An edit is computed as the difference d of the
edited latent to the inversion's own, x = X + d. The solver is linear in x and P, so d follows the same formula with
P(x) - P_i in place of P. Where nothing is edited d is exactly 0, and the result is the source image, whatever the
number of steps. This is the source branch of PnP Inversion (Ju et al. 2024), for every step of a multistep solver.

An Asyrp step adds alpha' dP to the plain step, dP = P(h + delta_h) - P(h). That is the plain step with P + w dP, where
w = 1 / (1 - e^-h) for the h of that step. `EditWeights` keeps w as it was in the number of steps for which strength 1
was set, and integrates it over a move. A strength is then the same edit in any number of steps.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, expm1, sqrt
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from asyrp.diffusion.process import Noise, Watch, boosting_step, edit_gain, predict, predicted_x0
from asyrp.diffusion.schedule import CLEAN, NoiseSchedule
from asyrp.diffusion.unet import Encoded, SplitUNet


class Push(NamedTuple):
    """What an edit does in one move: delta_h, and on the CPU the weights [B] of dP and of its slope in lambda.

    An image whose `value` is 0 is not edited.
    """

    delta_h: Tensor
    value: Tensor
    slope: Tensor


class Pushes(Protocol):
    """The pushes of an edit, move by move from t down to t_next."""

    def acts(self, t: int, t_next: int) -> bool:
        """Whether any image of the batch is edited in this move."""

    def push(self, encoded: Encoded, t: int, t_next: int) -> Push:
        """The push of a move in which the edit acts, given the encoded x_t."""


class Point(NamedTuple):
    """A quantity [B, C, H, W] that the solver follows, and the lambda at which it was found."""

    value: Tensor
    snr: float


def move(x: Tensor, here: Point, before: Point | None, snr: float) -> Tensor:
    """x at lambda `snr`, from x and P at `here` and P at the point before, if any (Lu et al. 2022, algorithm 2)."""
    h = snr - here.snr
    drift = here.value
    if before is not None and before.snr != here.snr:
        drift = drift + h / (2 * (here.snr - before.snr)) * (here.value - before.value)
    return _sigma(snr) / _sigma(here.snr) * x - _alpha(snr) * expm1(-h) * drift


def invert(
    unet: SplitUNet,
    schedule: NoiseSchedule,
    x_0: Tensor,
    steps: Sequence[int],
    watch: Watch | None = None,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """The inversion of images x_0 [B, C, H, W] along ascending `steps`: [B, len(steps), C, H, W] of `dtype`.

    It holds x_0, then P_i at every step but the last. The latents follow from these (`latents`). P_i is rounded to
    `dtype` before it is used, so an inversion that was stored gives exactly the latents that were visited. It takes one
    evaluation of the net for each move.
    """
    snrs, kept = schedule.half_log_snrs().tolist(), [x_0.to(dtype)]
    x, before = _full(kept[0]), None
    for t, t_next in pairwise(steps):
        image = predicted_x0(x, predict(unet, x, t), schedule.level(t))
        if watch:
            watch(t, image)
        kept.append(image.to(dtype))
        here = Point(_full(kept[-1]), snrs[t])
        x, before = move(x, here, before, snrs[t_next]), here
    return torch.stack(kept, dim=1)


def latents(schedule: NoiseSchedule, inversion: Tensor, steps: Sequence[int]) -> list[Tensor]:
    """X_i at each of `steps`, from an inversion along these steps or further. It takes no evaluation of the net."""
    snrs, found = schedule.half_log_snrs().tolist(), [_full(inversion[:, 0])]
    before = None
    for index, (t, t_next) in enumerate(pairwise(steps), start=1):
        here = Point(_full(inversion[:, index]), snrs[t])
        found.append(move(found[-1], here, before, snrs[t_next]))
        before = here
    return found


def generate(unet: SplitUNet, schedule: NoiseSchedule, x: Tensor, steps: Sequence[int]) -> Tensor:
    """The images of latents x at the last of the ascending `steps`, by the plain solver. It is not anchored."""
    snrs, before = schedule.half_log_snrs().tolist(), None
    image = x
    for t, t_next in downwards(steps):
        image = predicted_x0(x, predict(unet, x, t), schedule.level(t))
        if t_next != CLEAN:
            here = Point(image, snrs[t])
            x, before = move(x, here, before, snrs[t_next]), here
    return image


def edit(
    unet: SplitUNet, schedule: NoiseSchedule, inversion: Tensor, steps: Sequence[int], pushes: Pushes, t_boost: int = 0
) -> Tensor:
    """Edited images; with `t_boost` edited latents at the first step below it. Anchored to an inversion along `steps`.

    The net is evaluated from the first step that is edited down: one encode and one decode at each step, and a second
    decode where the edit acts.
    """
    snrs, source = schedule.half_log_snrs().tolist(), latents(schedule, inversion, steps)
    difference = torch.zeros_like(source[0])
    moved = torch.zeros(len(difference), dtype=torch.bool)  # which images are edited by now; on the CPU, as weights are
    change_before, forcing = None, Forcing()
    for index, (t, t_next) in zip(reversed(range(len(steps))), downwards(steps), strict=True):
        if t < t_boost:
            return source[index] + difference
        acts = pushes.acts(t, t_next)
        if not acts and not moved.any():
            continue  # the difference is 0
        x, a = source[index] + difference, schedule.level(t)
        encoded = unet.encode(x, t)
        image = predicted_x0(x, unet.decode(encoded, encoded.h), a)
        change = Point(torch.zeros_like(x), snrs[t])
        if moved.any():
            change = Point(torch.where(_each(moved, x), image - _full(inversion[:, index + 1]), 0), snrs[t])
        difference = change.value if t_next == CLEAN else move(difference, change, change_before, snrs[t_next])
        if acts:
            push = pushes.push(encoded, t, t_next)
            shifted = predicted_x0(x, unet.decode(encoded, encoded.h + push.delta_h), a)
            difference = difference + sqrt(schedule.level(t_next)) * forcing(Point(shifted - image, snrs[t]), push)
            moved = moved | (push.value != 0)
        else:
            forcing = Forcing()
        change_before = change
    return source[0] + difference


def boost(
    unet: SplitUNet,
    schedule: NoiseSchedule,
    x: Tensor,
    steps: Sequence[int],
    pushes: Pushes,
    t_boost: int,
    noise: Noise,
) -> Tensor:
    """The images of latents x at the first of `steps` below `t_boost`, by first-order steps with eta = 1.

    The edit still acts where its interval reaches these moves.
    """
    for t, t_next in downwards(steps):
        if t >= t_boost:
            continue
        a, a_next = schedule.level(t), schedule.level(t_next)
        encoded = unet.encode(x, t)
        eps = unet.decode(encoded, encoded.h)
        x = boosting_step(x, eps, noise(t), a, a_next)
        if pushes.acts(t, t_next):
            push = pushes.push(encoded, t, t_next)
            shifted = unet.decode(encoded, encoded.h + push.delta_h)
            x = x - edit_gain(a, a_next) * _each(push.value, x) * (shifted - eps)
    return x


class Forcing:
    """The weighted sum of dP over one move after the other, to second order: dP is taken as linear in lambda.

    An image whose edit begins with a move has no slope yet, so dP is taken as constant there.
    """

    def __init__(self) -> None:
        self._before: tuple[Point, Tensor] | None = None

    def __call__(self, change: Point, push: Push) -> Tensor:
        """What the move adds to P, of dP [B, C, H, W] at the beginning of the move."""
        total = _each(push.value, change.value) * change.value
        if self._before is not None and self._before[0].snr != change.snr:
            before, edited = self._before
            slope = (change.value - before.value) / (change.snr - before.snr)
            total = total + _each(torch.where(edited, push.slope, 0), slope) * slope
        self._before = change, push.value != 0
        return total


def downwards(steps: Sequence[int]) -> list[tuple[int, int]]:
    """The moves (t, t') of generation from the last of the ascending `steps` to CLEAN."""
    return list(pairwise([*reversed(steps), CLEAN]))


def _full(kept: Tensor) -> Tensor:
    """A tensor of an inversion in the precision of the process."""
    return kept.float() if kept.dtype == torch.float16 else kept


def _each(values: Tensor, beside: Tensor) -> Tensor:
    """Values [B] of images as [B, 1, 1, 1], on the device of another tensor."""
    return values.to(beside.device, non_blocking=True)[:, None, None, None]


def _alpha(snr: float) -> float:
    return 1 / sqrt(1 + exp(-2 * snr))


def _sigma(snr: float) -> float:
    return 1 / sqrt(1 + exp(2 * snr))
