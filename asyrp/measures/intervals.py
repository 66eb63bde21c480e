"""The intervals of a data set: distances of its images during inversion, and the rules for t_edit and t_boost.

The rules are those of Asyrp, section 3.4. This module does not import torch.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asyrp.errors import UserError
from asyrp.files import cache_root, write_whole

FORMAT = "asyrp-intervals-1"
LPIPS = "lpips"
"""The measure of the papers: LPIPS with AlexNet."""

T_EDIT_LPIPS, T_BOOST_LPIPS = 0.33, 1.2
"""The levels of the paper, in LPIPS."""

T_EDIT_HEIGHT, T_BOOST_HEIGHT = 0.283, 0.864
"""The heights of those levels on the released curves. A height is 0 at the first timestep and 1 at the last.

Each is the median of the five data sets. Their heights range from 0.25 to 0.34 and from 0.80 to 0.90.
"""


SHOWN_COSINES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""The text cosines for which t_edit is listed."""


def first_at_least(timesteps: tuple[int, ...], values: tuple[float, ...], level: float) -> int | None:
    """Returns the smallest timestep whose value is at least `level`, or None. `timesteps` ascend."""
    return next((t for t, value in zip(timesteps, values, strict=True) if value >= level), None)


@dataclass(frozen=True)
class Curve:
    """A distance at each timestep: mean and standard deviation over images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def level(self, height: float) -> float:
        """Returns the distance at a height between the curve's first value (0) and its last (1)."""
        return self.mean[0] + height * (self.mean[-1] - self.mean[0])


@dataclass(frozen=True)
class Thresholds:
    """The distances that the rules compare with. `t_edit` is the distance for texts of cosine 1."""

    t_edit: float
    t_boost: float


def thresholds(measure: str, p_t: Curve, x_t: Curve) -> Thresholds:
    """Returns the paper's levels for LPIPS, and for any other measure the levels of the same height on its curves."""
    if measure == LPIPS:
        return Thresholds(T_EDIT_LPIPS, T_BOOST_LPIPS)
    return Thresholds(p_t.level(T_EDIT_HEIGHT), x_t.level(T_BOOST_HEIGHT))


@dataclass(frozen=True)
class Intervals:
    """Distances of images during a DDIM inversion, by a perceptual `measure`.

    `p_t` is the distance from an image to P_t, and `x_t` the distance from it to x_t. Both are at the timestep where
    P_t was predicted from x_t.
    """

    model: str
    model_digest: str
    measure: str
    images: int
    timesteps: tuple[int, ...]
    p_t: Curve
    x_t: Curve
    thresholds: Thresholds

    def t_edit(self, text_cosine: float = 1.0) -> int | None:
        """Returns the smallest t where the distance to P_t is at least threshold - threshold * d, or None.

        d = 1 - `text_cosine` is the distance of the two texts in CLIP.

        Raises:
            UserError: for a cosine that is not in (0, 1].
        """
        if not 0 < text_cosine <= 1:
            raise UserError(f"text cosine {text_cosine:g}: give one above 0 and up to 1")
        return first_at_least(self.timesteps, self.p_t.mean, self.thresholds.t_edit * text_cosine)

    def t_boost(self) -> int | None:
        """Returns the smallest t where the distance to x_t is at least its threshold, or None."""
        return first_at_least(self.timesteps, self.x_t.mean, self.thresholds.t_boost)


def learned_path(model_digest: str) -> Path:
    """Returns the path where this machine keeps the intervals of a model, and where runs look for them."""
    return cache_root() / "intervals" / f"{model_digest}.json"


def save(intervals: Intervals, path: Path) -> None:
    """Write a file of intervals. It is written whole or not at all."""
    write_whole(path, (json.dumps({"format": FORMAT, **asdict(intervals)}, indent=1) + "\n").encode())


def load(path: Path) -> Intervals:
    """Read a file of intervals.

    Raises:
        UserError: if there is no such file, or it is not a file of intervals.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no file of intervals {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the intervals {path} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise UserError(f"{path} is no file of intervals: its format is not '{FORMAT}'")
    curves = {name: Curve(tuple(data[name]["mean"]), tuple(data[name]["std"])) for name in ("p_t", "x_t")}
    whole: dict[str, Any] = data | curves
    return Intervals(**whole | {"timesteps": tuple(data["timesteps"]), "thresholds": Thresholds(**data["thresholds"])})


def load_for(path: Path | None, model_digest: str, model_name: str) -> Intervals:
    """Read the intervals of a model from a file, or those that were learned last on this machine.

    Raises:
        UserError: if there are none, or they belong to another model.
    """
    learn = f"learn them with 'asyrp intervals learn -s IMAGES --model {model_name}'"
    if path is None and not learned_path(model_digest).is_file():
        raise UserError(f"no intervals are known for the model {model_name} ({model_digest[:12]}): {learn}")
    found = load(path or learned_path(model_digest))
    if found.model_digest != model_digest:
        raise UserError(
            f"the intervals {path} were measured on the model {found.model_digest[:12]}, not on {model_name} "
            f"({model_digest[:12]}): {learn}"
        )
    return found
