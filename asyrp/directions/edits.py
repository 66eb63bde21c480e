"""Defines edits, which are named, weighted sums of directions, and parses them."""

import math
import re
from dataclasses import dataclass, replace

from asyrp.errors import UserError
from asyrp.numbers import number

RECONSTRUCTION = "reconstruction"
TERM = re.compile(r"\s*(?P<name>[A-Za-z_][\w.-]*)\s*(?:=\s*(?P<weight>[^=\s]+)\s*)?")


@dataclass(frozen=True)
class Edit:
    """`strength` times the weighted sum of directions. Without weights it is a plain reconstruction."""

    name: str
    strength: float
    weights: tuple[tuple[str, float], ...]

    @property
    def id(self) -> str:
        """A name that differs from that of the same edit at another strength."""
        return f"{self.name}_{self.strength:g}"


def reconstruction() -> Edit:
    """The edit that shifts nothing."""
    return Edit(RECONSTRUCTION, 0.0, ())


def official_sum(edit: Edit) -> Edit:
    """The edit with the official code's weights: it divides every weight of a sum of k directions by sqrt(k)."""
    root = math.sqrt(len(edit.weights))
    return replace(edit, weights=tuple((name, weight / root) for name, weight in edit.weights))


def parse_edit(text: str) -> Edit:
    """Parse an edit from `direction=weight` terms joined by commas: "glasses=1", "smile=1,beard=-0.5".

    An edit of one direction has that direction's name, and its weight is the strength; so a sweep over strengths is one
    edit. A sum is named by its terms in the given order, and has strength 1. A missing weight is 1.

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
    value = 1.0 if text is None else number(text)
    return None if value is None else float(value)
