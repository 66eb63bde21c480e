"""The processes that a spec can ask for, and the presets that it can leave them to."""

from dataclasses import dataclass
from typing import Any, Literal

from asyrp.diffusion.moves import SolverName

PresetName = Literal["default", "fast", "paper"]


@dataclass(frozen=True)
class Process:
    """A solver with its numbers of steps. Those of an anchored edit are the same up and down."""

    solver: SolverName
    n_inv: int
    n_gen: int
    refine: int = 0


PRESETS: dict[PresetName, Process] = {
    "default": Process("dpmpp_2m", 20, 20),
    "fast": Process("dpmpp_2m", 14, 14),
    "paper": Process("ddim", 40, 40),
}
USUAL: dict[SolverName, Process] = {"dpmpp_2m": PRESETS["default"], "ddim": PRESETS["paper"]}


def recorded_process(spec: dict[str, Any]) -> Process | None:
    """The process of the spec in a run.json; None if it is of no run of edits, or tells none.

    Runs of before there was a choice are of DDIM.
    """
    steps = (spec.get("n_inv"), spec.get("n_gen"))
    if not all(isinstance(n, int) and n >= 2 for n in steps) or spec.get("solver") not in (None, *USUAL):
        return None
    return Process(spec.get("solver") or "ddim", spec["n_inv"], spec["n_gen"], spec.get("refine", 0))
