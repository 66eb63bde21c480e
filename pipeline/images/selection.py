"""Selects images of a source: by a limit, a random share, or conditions on their columns."""

import hashlib
import json
import math
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from asyrp.errors import UserError
from asyrp.numbers import number
from pipeline.images.source import SourceImage

OPERATORS = {
    "==": operator.eq, "=": operator.eq, "!=": operator.ne,
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
CONDITION = re.compile(r"\s*([^\s=!<>]+)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*")
EQUALITIES = ("==", "=", "!=")
SELECTING, CARRYING = "select by", "carry along"
SHOWN_NAMES = 30


class Cell(str):
    """A cell of a CSV file, which has no types. It is compared as the number that it may be, and carried as written."""

    __slots__ = ()

    def carried(self) -> Any:
        """The number or truth value that JSON writes with the same signs, else the text: 7 is a number, 007 is not."""
        value = typed(self)
        same = not isinstance(value, str) and json.dumps(value) == self and abs(value) < 2**63
        return value if same else str(self)


def typed(text: str) -> int | float | bool | str:
    """The number or truth value that a text is, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    value = number(text)
    return text if value is None else value


@dataclass(frozen=True)
class Condition:
    """A condition `column operator value`.

    The type of the column decides how it is compared: numbers as numbers, truth values and texts as text. A cell of a
    CSV file is compared as a number if both sides are one, else as text.
    """

    column: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Parse a condition such as `age>=30`. Raises UserError if the text is not one."""
        match = CONDITION.fullmatch(text)
        if match is None:
            raise UserError(f"'{text}' is no condition: write it as column=value, or with !=, <, <=, >, >=")
        return cls(*match.groups())

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {self.value}"

    def holds(self, columns: Mapping[str, Any], whose: str = "the source") -> bool:
        """Whether the condition holds for these columns; it does not if the column is empty. `whose` they are, an error
        says.

        Raises:
            UserError: if there is no such column, or it holds numbers and the value is none.
        """
        if self.column not in columns:
            raise _no_column(self.column, SELECTING, columns, whose)
        found, compare = columns[self.column], OPERATORS[self.operator]
        if found is None or found == "":
            return False
        if isinstance(found, Cell):
            return self._holds_for(found)
        if isinstance(found, bool):
            return compare(str(found).lower(), self.value.lower())
        if isinstance(found, int | float):
            value = number(self.value)
            if value is None:
                raise UserError(f"'{self.column}' holds numbers, and '{self.value}' is none")
            return compare(found, value)
        return compare(str(found), self.value)

    def _holds_for(self, cell: Cell) -> bool:
        found, value, compare = typed(cell), number(self.value), OPERATORS[self.operator]
        if isinstance(found, bool):
            return compare(cell.lower(), self.value.lower())
        if not isinstance(found, str) and value is not None:
            return compare(found, value)
        # A word is neither more nor less than a number.
        return compare(cell, self.value) if value is None or self.operator in EQUALITIES else False


@dataclass(frozen=True)
class Selection:
    """A selection of images. `limit` is the largest number of images, `where` are conditions that all must hold.

    `share`, in 0..1, is a random share of the images. The keys decide it, so the same images are selected wherever and
    in whatever order they are listed. `columns` are carried along to the output. `image_column` is the column in which
    a table has its images or URLs, or the ending of the images in a tar.
    """

    limit: int | None = None
    share: float | None = None
    where: tuple[Condition, ...] = ()
    columns: tuple[str, ...] = ()
    image_column: str | None = None

    @property
    def reads_columns(self) -> bool:
        """Whether the selection needs columns, which cost a read."""
        return bool(self.where or self.columns)

    @property
    def conditions(self) -> list[str]:
        """What an image must fit to be selected, as the options that say so."""
        where = [f"--where '{condition}'" for condition in self.where]
        sample = [] if self.share is None else [f"--sample {self.share:g}"]
        return where + sample + ([f"--image-column '{self.image_column}'"] if self.image_column else [])

    def columns_of(self, names: Collection[str]) -> list[str]:
        """The columns that the selection needs, of a table with columns `names`. Raises UserError if it lacks one."""
        selects = {condition.column: SELECTING for condition in self.where}
        wanted = selects | dict.fromkeys(self.columns, CARRYING)
        for name, purpose in wanted.items():
            if name not in names:
                raise _no_column(name, purpose, names)
        return list(wanted)

    def chosen(self, images: Iterable[SourceImage]) -> Iterator[SourceImage]:
        """The selected images, without the limit, each with the columns that are carried along.

        Raises:
            UserError: if an image lacks a column of the selection.
        """
        for image in images:
            whose = f"the image '{image.key}'"
            if all(condition.holds(image.columns, whose) for condition in self.where) and self._sampled(image.key):
                yield replace(image, columns=self._carried(image))

    def _carried(self, image: SourceImage) -> dict[str, Any]:
        """The columns that are carried along. Raises UserError if the image lacks one."""
        carried = {}
        for name in self.columns:
            if name not in image.columns:
                raise _no_column(name, CARRYING, image.columns, f"the image '{image.key}'")
            value = image.columns[name]
            carried[name] = _as_json(value.carried() if isinstance(value, Cell) else value)
        return carried

    def _sampled(self, key: str) -> bool:
        return self.share is None or is_sampled(key, self.share, "sample")


def some_names(names: Collection[str]) -> str:
    """Names in a sentence, which may be those of the thousands of columns of a table."""
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return (", ".join(list(names)[:SHOWN_NAMES]) or "none") + more


def _as_json(value: Any) -> Any:
    """A value as JSON can hold it: a float that is no number is empty, or the text that says it is infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _no_column(name: str, purpose: str, names: Collection[str], whose: str = "the source") -> UserError:
    return UserError(f"{whose} has no column '{name}' to {purpose}: it has {some_names(names)}")


def is_sampled(key: str, share: float, purpose: str) -> bool:
    """Whether a key is in a random share of all keys. Each `purpose` (at most 16 letters) has another such share."""
    hashed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=purpose.encode()).digest(), "little")
    return hashed < share * 2**64


ALL = Selection()
