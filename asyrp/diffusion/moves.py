"""The names of the solvers, and what a move between timesteps passes. No torch here."""

from typing import Literal

SolverName = Literal["ddim", "dpmpp_2m"]


def covered(t: int, t_next: int, t_start: int | None, t_edit: int) -> range:
    """The timesteps that a move from t down to t_next passes in the interval from t_start (None: T) down to t_edit.

    A move passes t itself and all timesteps above t_next. The steps of the papers act for t alone: t_next is t - 1.
    """
    return range(max(t_next + 1, t_edit), (t if t_start is None else min(t, t_start)) + 1)
