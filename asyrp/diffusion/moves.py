"""The names of the solvers, and what a move between timesteps passes. No torch here."""

from typing import Literal

SolverName = Literal["ddim", "dpmpp_2m"]


def inside(t: int, t_start: int | None, t_edit: int) -> bool:
    """Whether a timestep is in the editing interval from t_start (None: T) down to t_edit, both of which belong to
    it."""
    return t_edit <= t and (t_start is None or t <= t_start)
