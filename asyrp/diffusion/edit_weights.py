"""What an Asyrp edit weighs in a move of any length, so that a strength means the same in any number of steps."""

from typing import NamedTuple

import torch
from torch import Tensor

from asyrp.diffusion.moves import inside
from asyrp.diffusion.schedule import CLEAN, LEAST_LEVEL, NoiseSchedule, generation_pairs


class Weight(NamedTuple):
    """The weights of dP at the beginning of a move, and of its slope in lambda."""

    value: float
    slope: float


NOTHING = Weight(0.0, 0.0)


class EditWeights:
    """The weights of the moves of an edit whose strength 1 was set in a process of `n_steps` even DDIM steps.

    There a step of dP is alpha' dP, which in the exponential integrator is alpha' (1 - e^-h) w dP with the rate
    w = 1 / (1 - e^-h), h being the step's own. Here the rate is that of a step of the same length around each timestep,
    and a move adds alpha' times the integral of e^(lambda - lambda') w dP over those of its timesteps at which the edit
    acts.

    An edit acts at the timesteps that are passed by the DDIM steps which begin in its interval. So the last of these
    steps counts as a whole, down to where the next begins.
    """

    def __init__(self, schedule: NoiseSchedule, n_steps: int) -> None:
        snr, last = schedule.half_log_snrs(), len(schedule) - 1
        length = last / max(1, n_steps - 1)
        below = (torch.arange(last, dtype=torch.float64) + (1 - length) / 2).clamp(0, last - length)
        rate = -1 / torch.expm1(_at(snr, below + length) - _at(snr, below)).clamp(max=-LEAST_LEVEL)
        self._ratio = snr.exp()
        growth = (self._ratio[:-1] - self._ratio[1:]) * rate  # over each timestep, from the one above it
        self._snr = snr
        self._steps = generation_pairs(min(max(2, n_steps), last + 1), last)
        self._acting: dict[tuple[int | None, int], range] = {}
        self._values = _sums(growth)
        self._moments = _sums(growth * (snr[:-1] + snr[1:]) / 2)

    def acts(self, t: int, t_next: int, t_start: int | None, t_edit: int) -> bool:
        """Whether an edit with the interval from t_start (None: T) down to t_edit acts in the move from t to t_next."""
        return bool(self._passed(t, t_next, t_start, t_edit))

    def of_move(self, t: int, t_next: int, t_start: int | None, t_edit: int) -> Weight:
        """The weights of a move from t to t_next of an edit with the interval from t_start (None: T) down to t_edit."""
        passed = self._passed(t, t_next, t_start, t_edit)
        if not passed:
            return NOTHING
        if t_next == CLEAN:  # the step from 0, which is as long as any
            return Weight(1.0, 0.0)
        value = self._values[passed[-1]] - self._values[passed[0] - 1]
        moment = self._moments[passed[-1]] - self._moments[passed[0] - 1]
        slope = moment - value * self._snr[t]
        return Weight(*(float(weight / self._ratio[t_next]) for weight in (value, slope)))

    def _passed(self, t: int, t_next: int, t_start: int | None, t_edit: int) -> range:
        """The timesteps that a move passes, t and those above t_next, at which the edit acts."""
        if (t_start, t_edit) not in self._acting:
            begun = [step for step in self._steps if inside(step[0], t_start, t_edit)]
            self._acting[t_start, t_edit] = range(begun[-1][1] + 1, begun[0][0] + 1) if begun else range(0)
        acting = self._acting[t_start, t_edit]
        return range(max(t_next + 1, acting.start), min(t + 1, acting.stop))


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Values between the entries of a tensor, linearly."""
    left = places.floor().long().clamp(max=len(values) - 2)
    return torch.lerp(values[left], values[left + 1], places - left)


def _sums(values: Tensor) -> Tensor:
    """The sums of the first 0, 1, 2, ... values."""
    return torch.cat([torch.zeros(1, dtype=values.dtype), values.cumsum(0)])
