"""Gives the intervals of the official release's five data sets, and the texts of its attributes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from asyrp.errors import UserError

HERE = Path(__file__).parent


@cache
def _data(name: str) -> dict[str, Any]:
    return json.loads((HERE / name).read_text())


def data_sets() -> list[str]:
    """The names of the data sets with known intervals."""
    return [name for name in _data("presets.json") if name != "source"]


def source() -> str:
    """A text that says where the intervals come from and what they mean."""
    return _data("presets.json")["source"]


def t_edit(data_set: str, text_cosine: float | None = None) -> int:
    """The end of the editing interval, given the CLIP cosine of source and target text (Asyrp, section 3.4).

    The closer the texts, the shorter the interval. Without a cosine it is the release's value for the data set.

    Raises:
        UserError: if the cosine is outside the release's table.
    """
    if text_cosine is None:
        return _data("presets.json")[data_set]["t_edit_without_text"]
    table = _data("presets.json")[data_set]["t_edit"]
    index = round((1 - text_cosine) * 100)
    if not 0 <= index < len(table):
        raise UserError(f"text cosine {text_cosine:g}: give one between {1 - (len(table) - 1) / 100:g} and 1")
    return table[index]


def t_boost(data_set: str) -> int:
    """The start of the boosting interval of a data set (Asyrp, section 3.4)."""
    return _data("presets.json")[data_set]["t_boost"]


def texts(attribute: str) -> tuple[str, str] | None:
    """Source and target text of an attribute of the release, with the release's own slips; None for an unknown one."""
    pair = _data("texts.json").get(attribute)
    return (pair[0], pair[1]) if pair else None
