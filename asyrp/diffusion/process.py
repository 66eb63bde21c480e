"""DDIM inversion and the asymmetric reverse process (Kwon et al. 2023), as functions over batches.

x is float32 [B, C, H, W] throughout, whatever precision the net runs in; levels a = alpha_bar[t] are Python
floats from the float64 schedule. All items of a batch are at the same timestep.
"""

from collections.abc import Callable
from math import sqrt

from torch import Tensor

from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import Encoded, SplitUNet

Shift = Callable[[Encoded, int], Tensor | None]
"""delta_h for this bottleneck at timestep t, or None where t is outside the editing interval."""

Noise = Callable[[int], Tensor]
"""Standard normal noise [B, C, H, W] for timestep t."""

Step = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
"""x_t, eps, eps_edit, a, a_next to x_{t'}."""

Watch = Callable[[int, Tensor], None]
"""Told of a timestep t and the P_t [B, C, H, W] predicted there."""

Pairs = list[tuple[int, int]]


def predicted_x0(x: Tensor, eps: Tensor, a: float) -> Tensor:
    """P_t: the image that x_t would denoise to if `eps` were all its noise (DDIM eq. 12, first term)."""
    return (x - sqrt(1 - a) * eps) / sqrt(a)


def ddim_step(x: Tensor, eps: Tensor, a: float, a_next: float) -> Tensor:
    """One deterministic DDIM move from level `a` to `a_next`, in either direction (DDIM eq. 12, eta = 0)."""
    return sqrt(a_next) * predicted_x0(x, eps, a) + sqrt(1 - a_next) * eps


def asyrp_step(x: Tensor, eps: Tensor, eps_edit: Tensor, a: float, a_next: float) -> Tensor:
    """One asymmetric DDIM step (Asyrp eq. 5): only P_t sees the edit; D_t keeps the plain eps."""
    return sqrt(a_next) * predicted_x0(x, eps_edit, a) + sqrt(1 - a_next) * eps


def symmetric_step(x: Tensor, eps: Tensor, eps_edit: Tensor, a: float, a_next: float) -> Tensor:  # noqa: ARG001
    """The edit in both halves, which largely cancels it (Asyrp theorem 1); kept to be compared with."""
    return ddim_step(x, eps_edit, a, a_next)


def boosting_step(x: Tensor, eps: Tensor, noise: Tensor, a: float, a_next: float) -> Tensor:
    """One stochastic DDIM step with eta = 1 (DDIM eq. 12 and 16); on the last step no noise is added."""
    sigma = sqrt((1 - a / a_next) * (1 - a_next) / (1 - a))
    direction = sqrt(max(0.0, 1 - a_next - sigma**2)) * eps
    return sqrt(a_next) * predicted_x0(x, eps, a) + direction + sigma * noise


def edit_gain(a: float, a_next: float) -> float:
    """A_t: an Asyrp step is the plain step minus A_t (eps_edit - eps). It hardly depends on the step size."""
    return sqrt(a_next * (1 - a) / a)


def predict(unet: SplitUNet, x: Tensor, t: int) -> Tensor:
    """The plain noise prediction eps of x_t."""
    encoded = unet.encode(x, t)
    return unet.decode(encoded, encoded.h)


def invert(
    unet: SplitUNet, schedule: NoiseSchedule, x_0: Tensor, pairs: Pairs, refine: int = 0, watch: Watch | None = None
) -> Tensor:
    """x_T of an image batch by DDIM inversion.

    With `refine` 0 the net is evaluated at the source level of each of the n - 1 moves, as in the papers. That is
    not quite what the generation step that comes back will use: eps at the target. `refine` k solves for it with
    k fixed-point iterations per move (Pan et al. 2023, AIDI), at 1 + k (n - 1) evaluations in all; a move starts
    from the eps that the one before ended with.
    """
    x, eps = x_0, None
    for t, t_next in pairs:
        a, a_next = schedule.level(t), schedule.level(t_next)
        if eps is None or not refine:
            eps = predict(unet, x, t)
        if watch:
            watch(t, predicted_x0(x, eps, a))
        for _ in range(refine):
            eps = predict(unet, ddim_step(x, eps, a, a_next), t_next)
        x = ddim_step(x, eps, a, a_next)
    return x


def inversion_calls(n: int, refine: int) -> int:
    """How often `invert` evaluates the net for n steps."""
    return 1 + refine * (n - 1) if refine else n - 1


def edit(
    unet: SplitUNet,
    schedule: NoiseSchedule,
    x: Tensor,
    pairs: Pairs,
    shift: Shift,
    step: Step = asyrp_step,
) -> Tensor:
    """Denoise `x` along `pairs`: Asyrp steps where `shift` gives a delta_h, plain DDIM elsewhere.

    One encode feeds both decodes of a step; outside the editing interval there is one decode.
    """
    for t, t_next in pairs:
        a, a_next = schedule.level(t), schedule.level(t_next)
        encoded = unet.encode(x, t)
        eps = unet.decode(encoded, encoded.h)
        delta_h = shift(encoded, t)
        if delta_h is None:
            x = ddim_step(x, eps, a, a_next)
        else:
            x = step(x, eps, unet.decode(encoded, encoded.h + delta_h), a, a_next)
    return x


def boost(unet: SplitUNet, schedule: NoiseSchedule, x: Tensor, pairs: Pairs, shift: Shift, noise: Noise) -> Tensor:
    """Denoise `x` along `pairs` with eta = 1. A shift still acts where its interval reaches this far down."""
    for t, t_next in pairs:
        a, a_next = schedule.level(t), schedule.level(t_next)
        encoded = unet.encode(x, t)
        eps = unet.decode(encoded, encoded.h)
        delta_h = shift(encoded, t)
        x_next = boosting_step(x, eps, noise(t), a, a_next)
        if delta_h is not None:
            x_next -= edit_gain(a, a_next) * (unet.decode(encoded, encoded.h + delta_h) - eps)
        x = x_next
    return x


def split_at_boost(pairs: Pairs, t_boost: int) -> tuple[Pairs, Pairs]:
    """The moves that start at t >= t_boost (deterministic) and those below it (eta = 1)."""
    return [p for p in pairs if p[0] >= t_boost], [p for p in pairs if p[0] < t_boost]
