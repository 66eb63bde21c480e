"""Edits: named, weighted sums of directions."""

import math
import re
from dataclasses import dataclass, replace

from asyrp.errors import UserError

RECONSTRUCTION = "reconstruction"
TERM = re.compile(r"\s*(?P<name>[A-Za-z_][\w.-]*)\s*(?:=\s*(?P<weight>[^=\s]+)\s*)?")


@dataclass(frozen=True)
class Edit:
    """`strength` times the sum of weight times direction. No weights: a plain reconstruction."""

    name: str
    strength: float
    weights: tuple[tuple[str, float], ...]

    @property
    def id(self) -> str:
        """How the edit is called where it must be told from the same edit at another strength."""
        return f"{self.name}_{self.strength:g}"


def reconstruction() -> Edit:
    """The edit that shifts nothing."""
    return Edit(RECONSTRUCTION, 0.0, ())


def official_sum(edit: Edit) -> Edit:
    """The edit as the official code sums k directions: every weight divided by sqrt(k)."""
    root = math.sqrt(len(edit.weights))
    return replace(edit, weights=tuple((name, weight / root) for name, weight in edit.weights))


def parse_edit(text: str) -> Edit:
    """An edit from `direction=weight` terms joined by commas: "glasses=1", "smile=1,beard=-0.5".

    A single direction is the edit's name and its weight the strength, so that a sweep over strengths is one
    edit. A sum is named by its terms, in the given order, and has strength 1. A weight left out is 1.

    Raises:
        UserError: if the text does not follow this grammar, or names a direction twice.
    """
    if text.strip() == RECONSTRUCTION:
        return reconstruction()
    weights: dict[str, float] = {}
    for part in text.split(","):
        match = TERM.fullmatch(part)
        weight = _number(match["weight"]) if match else None
        if match is None or weight is None:
            raise UserError(f"edit '{text}': '{part.strip()}' is not of the form direction=weight, as in smile=1")
        if match["name"] in weights:
            raise UserError(f"edit '{text}' names the direction '{match['name']}' twice; give it one weight")
        weights[match["name"]] = weight
    if len(weights) == 1:
        [(name, strength)] = weights.items()
        return Edit(name, strength, ((name, 1.0),))
    return Edit(",".join(f"{name}={weight:g}" for name, weight in weights.items()), 1.0, tuple(weights.items()))


def _number(text: str | None) -> float | None:
    try:
        value = 1.0 if text is None else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
