"""DDIM inversion and the asymmetric reverse process (Kwon et al. 2023), as functions over batches.

Names, and the symbols of the papers:
    x_0, x, x_T -> x_0, x_t, x_T: the image, the latent at timestep t, the inverted latent
    a, a_next -> alpha_t, alpha_{t'} of DDIM (alpha_bar of DDPM): the signal levels at t and at the next timestep t'
    eps, eps_edit -> eps_theta(x_t | h), eps_theta(x_t | h + delta_h): the predicted noise without and with the edit
    predicted_x0 -> P_t; the remaining, direction term of a step -> D_t
    encoded.h, delta_h -> h_t, Delta h_t: the output of the U-Net's middle block, and the shift that an edit adds to it
    sigma, noise -> sigma_t, z_t of the stochastic step; edit_gain -> A_t; pairs -> the moves (t, t')

x is always float32 [B, C, H, W], whatever precision the net runs in. Levels are Python floats from the float64
schedule. All items of a batch are at the same timestep.
"""

from collections.abc import Callable
from math import sqrt

from torch import Tensor

from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import Encoded, SplitUNet

Shift = Callable[[Encoded, int], Tensor | None]
"""Gives delta_h for an encoded x_t at timestep t, or None where t is outside the editing interval."""

Noise = Callable[[int], Tensor]
"""Gives standard normal noise [B, C, H, W] for timestep t."""

Step = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
"""Maps x_t, eps, eps_edit, a, a_next to x_{t'}."""

Watch = Callable[[int, Tensor], None]
"""Receives each timestep t and the P_t [B, C, H, W] predicted there."""

Pairs = list[tuple[int, int]]


def predicted_x0(x: Tensor, eps: Tensor, a: float) -> Tensor:
    """P_t: the image x_0 that x_t implies if `eps` is its noise (DDIM eq. 12, first term)."""
    return (x - sqrt(1 - a) * eps) / sqrt(a)


def ddim_step(x: Tensor, eps: Tensor, a: float, a_next: float) -> Tensor:
    """One deterministic DDIM move from level `a` to `a_next`, in either direction (DDIM eq. 12, eta = 0)."""
    return sqrt(a_next) * predicted_x0(x, eps, a) + sqrt(1 - a_next) * eps


def asyrp_step(x: Tensor, eps: Tensor, eps_edit: Tensor, a: float, a_next: float) -> Tensor:
    """One asymmetric DDIM step (Asyrp eq. 5): only P_t sees the edit; D_t keeps the plain eps."""
    return sqrt(a_next) * predicted_x0(x, eps_edit, a) + sqrt(1 - a_next) * eps


def symmetric_step(x: Tensor, eps: Tensor, eps_edit: Tensor, a: float, a_next: float) -> Tensor:  # noqa: ARG001
    """One DDIM step with the edit in both P_t and D_t, which largely cancels it (Asyrp theorem 1); for comparison."""
    return ddim_step(x, eps_edit, a, a_next)


def boosting_step(x: Tensor, eps: Tensor, noise: Tensor, a: float, a_next: float) -> Tensor:
    """One stochastic DDIM step with eta = 1 (DDIM eq. 12 and 16); the last step adds no noise."""
    sigma = sqrt((1 - a / a_next) * (1 - a_next) / (1 - a))
    direction = sqrt(max(0.0, 1 - a_next - sigma**2)) * eps
    return sqrt(a_next) * predicted_x0(x, eps, a) + direction + sigma * noise


def edit_gain(a: float, a_next: float) -> float:
    """A_t: an Asyrp step is the plain step minus A_t (eps_edit - eps). A_t hardly depends on the step size."""
    return sqrt(a_next * (1 - a) / a)


def predict(unet: SplitUNet, x: Tensor, t: int) -> Tensor:
    """The noise prediction eps [B, C, H, W] for x_t, without an edit."""
    encoded = unet.encode(x, t)
    return unet.decode(encoded, encoded.h)


def invert(
    unet: SplitUNet, schedule: NoiseSchedule, x_0: Tensor, pairs: Pairs, refine: int = 0, watch: Watch | None = None
) -> Tensor:
    """DDIM inversion: x_T [B, C, H, W] of an image batch x_0, along the n - 1 moves of `pairs`.

    With `refine` 0 each move uses eps at its source level, as in the papers. The generation step back uses eps at the
    target level instead, which differs slightly. `refine` k solves for that eps with k fixed-point iterations per move
    (Pan et al. 2023, AIDI), and a move starts from the last eps of the move before. This takes 1 + k (n - 1)
    evaluations of the net in all. `watch` receives P_t at the source level of each move.
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
    """The number of times `invert` evaluates the net for n steps."""
    return 1 + refine * (n - 1) if refine else n - 1


def edit(
    unet: SplitUNet,
    schedule: NoiseSchedule,
    x: Tensor,
    pairs: Pairs,
    shift: Shift,
    step: Step = asyrp_step,
) -> Tensor:
    """Denoise `x` along `pairs`: Asyrp steps where `shift` gives a delta_h, plain DDIM steps elsewhere.

    A step inside the editing interval takes one encode and two decodes, a step outside it one encode and one decode.
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
    """Denoise `x` along `pairs` with eta = 1. `shift` still acts where its editing interval reaches these moves."""
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
    """The moves that start at t >= t_boost (deterministic), and those that start below it (eta = 1)."""
    return [p for p in pairs if p[0] >= t_boost], [p for p in pairs if p[0] < t_boost]
