"""The noise schedule and the timestep sequences of DDIM, in float64."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

CLEAN = -1
"""The timestep that follows 0 in generation: the clean image, where alpha_bar is 1."""

LEAST_LEVEL = 2.0**-24
"""The smallest alpha_bar. The schedulers of diffusers use the same in place of 0."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The cumulative signal levels of a diffusion process; `alpha_bar` is float64 [T] on the CPU."""

    alpha_bar: Tensor

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> "NoiseSchedule":
        """The linear schedule of DDPM (Ho et al. 2020). Every net of the papers was trained with it."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, beta_start: float, beta_end: float, steps: int) -> "NoiseSchedule":
        """The schedule whose roots of betas are linear, as latent diffusion has it (Rombach et al. 2022)."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64)
        return cls.from_betas(roots.square())

    @classmethod
    def sigmoid(cls, beta_start: float, beta_end: float, steps: int) -> "NoiseSchedule":
        """The schedule of GeoDiff (Xu et al. 2022): betas along a sigmoid from -6 to 6."""
        rise = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
        return cls.from_betas(rise * (beta_end - beta_start) + beta_start)

    @classmethod
    def cosine(cls, steps: int = 1000) -> "NoiseSchedule":
        """The cosine schedule of iDDPM (Nichol & Dhariwal 2021, eq. 17), with betas cut at 0.999."""
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
        return cls.from_betas((1 - signal[1:] / signal[:-1]).clamp(max=0.999))

    @classmethod
    def from_betas(cls, betas: Tensor) -> "NoiseSchedule":
        """The schedule with these betas [T], float64."""
        return cls(torch.cumprod(1 - betas, dim=0))

    def with_zero_terminal_snr(self) -> "NoiseSchedule":
        """The schedule scaled so that its last level is noise alone (Lin et al. 2024, algorithm 1).

        The last level is LEAST_LEVEL, not 0: the process divides by it.
        """
        roots = self.alpha_bar.sqrt()
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        return NoiseSchedule(roots.square().clamp(min=LEAST_LEVEL))

    def is_close_to(self, other: "NoiseSchedule") -> bool:
        """Whether both schedules have as many levels and no level differs by more than 0.01."""
        return len(self) == len(other) and torch.allclose(self.alpha_bar, other.alpha_bar, rtol=0, atol=0.01)

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def level(self, t: int) -> float:
        """alpha_bar at timestep `t`, which is 1 at CLEAN."""
        return 1.0 if t == CLEAN else self.alpha_bar[t].item()

    def half_log_snrs(self) -> Tensor:
        """lambda = ln(alpha / sigma) at every timestep, float64 [T], descending (Lu et al. 2022, section 2.1)."""
        return torch.special.logit(self.alpha_bar, eps=LEAST_LEVEL) / 2


def timesteps(n: int, t_0: int = 999) -> list[int]:
    """`n` timesteps from 0 to `t_0`, ascending, spaced as in the official code.

    The added 1e-6 undoes rounding down: without it 58 of 1000 values would be one too small.

    Raises:
        ValueError: if `n` distinct steps do not fit into 0..t_0, or n < 2.
    """
    if not 2 <= n <= t_0 + 1:
        raise ValueError(f"between 2 and {t_0 + 1} steps fit below timestep {t_0}, not {n}")
    return [int(v + 1e-6) for v in (torch.linspace(0, 1, n, dtype=torch.float64) * t_0).tolist()]


def inversion_pairs(n: int, t_0: int = 999) -> list[tuple[int, int]]:
    """The n - 1 moves (t, t') of DDIM inversion, upwards from 0 to `t_0`."""
    steps = timesteps(n, t_0)
    return list(itertools.pairwise(steps))


def generation_pairs(n: int, t_0: int = 999) -> list[tuple[int, int]]:
    """The n moves (t, t') of DDIM generation, downwards from `t_0` to CLEAN."""
    steps = timesteps(n, t_0)
    return list(zip(reversed(steps), reversed([CLEAN, *steps[:-1]]), strict=True))


def blended_timesteps(n: int, schedule: NoiseSchedule) -> list[int]:
    """`n` timesteps from 0 to the last of `schedule`, ascending, spaced half in t and half in lambda.

    The mean of t and of the drop of lambda since timestep 0, both scaled to 0..1, grows evenly along the sequence.
    Steps that are even in t alone jump in lambda near the image; steps that are even in lambda alone crowd there.

    Raises:
        ValueError: if the schedule has fewer than `n` timesteps, or n < 2.
    """
    last = len(schedule) - 1
    if not 2 <= n <= last + 1:
        raise ValueError(f"between 2 and {last + 1} steps fit below timestep {last}, not {n}")
    snr = schedule.half_log_snrs()
    drop = (snr[0] - snr) / (snr[0] - snr[-1]).clamp(min=LEAST_LEVEL)
    progress = (torch.linspace(0, 1, last + 1, dtype=torch.float64) + drop) / 2
    wanted = torch.linspace(0, 1, n, dtype=torch.float64)
    nearest = (progress[None] - wanted[:, None]).abs().argmin(dim=1)
    # Where steps crowd, each is at least one further than the one before, and leaves room for those that follow.
    index = torch.arange(n)
    apart = torch.cummax(nearest - index, dim=0).values + index
    return torch.minimum(apart, last - (n - 1 - index)).tolist()
