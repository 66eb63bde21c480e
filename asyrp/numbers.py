"""Reads numbers as people write them."""

import math
import re

_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300})([eE][+-]?[0-9]{1,9})?")


def number(text: str) -> int | float | None:
    """The finite number that a text is; None if it is none. Python's own reading also takes `1_0`, `nan` and `inf`."""
    text = text.strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None
