"""Selects images of a source: by a limit, a random share, or conditions on their columns."""

import hashlib
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from asyrp.errors import UserError
from pipeline.images.source import SourceImage

OPERATORS = {
    "==": operator.eq, "=": operator.eq, "!=": operator.ne,
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
CONDITION = re.compile(r"\s*([^\s=!<>]+)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*")


@dataclass(frozen=True)
class Condition:
    """A condition `column operator value`.

    The type of the column decides how it is compared: numbers as numbers, truth values and texts as text.
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

    def holds(self, columns: Mapping[str, Any]) -> bool:
        """Whether the condition holds for these columns; it does not if the column is empty.

        Raises:
            UserError: if there is no such column, or it holds numbers and the value is none.
        """
        if self.column not in columns:
            have = ", ".join(columns) or "none"
            raise UserError(f"the source has no column '{self.column}' to select by: it has {have}")
        found = columns[self.column]
        if found is None:
            return False
        if isinstance(found, bool):
            return OPERATORS[self.operator](str(found).lower(), self.value.lower())
        if isinstance(found, int | float):
            try:
                return OPERATORS[self.operator](found, float(self.value))
            except ValueError:
                raise UserError(f"'{self.column}' holds numbers, and '{self.value}' is none") from None
        return OPERATORS[self.operator](str(found), self.value)


@dataclass(frozen=True)
class Selection:
    """A selection of images. `limit` is the largest number of images, `where` are conditions that all must hold.

    `share`, in 0..1, is a random share of the images. The keys decide it, so the same images are selected wherever and
    in whatever order they are listed. `columns` are carried along to the output. `image_column` is the column in which
    a table has its images or URLs.
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

    def chosen(self, images: Iterable[SourceImage]) -> Iterator[SourceImage]:
        """The selected images, without the limit, each with the columns that are carried along.

        Raises:
            UserError: if an image lacks a column of the selection.
        """
        for image in images:
            if all(condition.holds(image.columns) for condition in self.where) and self._sampled(image.key):
                yield replace(image, columns=self._carried(image))

    def _carried(self, image: SourceImage) -> dict[str, Any]:
        """The columns that are carried along. Raises UserError if the image lacks one."""
        for name in self.columns:
            if name not in image.columns:
                have = ", ".join(image.columns) or "none"
                raise UserError(f"the source has no column '{name}' to carry along: it has {have}")
        return {name: image.columns[name] for name in self.columns}

    def _sampled(self, key: str) -> bool:
        return self.share is None or is_sampled(key, self.share, "sample")


def is_sampled(key: str, share: float, purpose: str) -> bool:
    """Whether a key is in a random share of all keys. Each `purpose` (at most 16 letters) has another such share."""
    hashed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=purpose.encode()).digest(), "little")
    return hashed < share * 2**64


ALL = Selection()
