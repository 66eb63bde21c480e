"""Reads records, the small JSON files that a run or a job keeps about itself, and holds each against a dataclass.

A record may be cut off, may be of another kind, or may have been changed by somebody. Every record is therefore checked
when it is read: that it is JSON of a sane size and depth, and that its fields have the types of the dataclass. What is
wrong becomes one sentence. Fields that the dataclass lacks are passed over, because a later version may have them.

Synchronising tools and desktops leave files of their own beside the records. A record is therefore known by its name:
all others in its folder are passed over, and `asyrp verify` counts them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from asyrp.errors import UserError
from pipeline.storage.store import NotAFile, Store

MOST_BYTES = 2**28
"""No record is larger. The largest are commits of shards with very many outputs: one file takes some 250 bytes."""

RESTORE = "bring it back from a copy"

Kind = TypeVar("Kind")
Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things, or of bytes. Above that, JSON numbers are not exact in every reader."""

Ordinal = Annotated[int, Field(ge=1, le=2**53)]
"""The place of a thing among others; 1 is the first."""

ShardCount = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A number of shards: plans and manifests hold it in 32 bits."""

Seconds = Annotated[float, Field(allow_inf_nan=False)]
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
"""The name of a stage. It is the name of its folders."""


class DamagedRecord(UserError):
    """A file is not the record that its name promises."""


@dataclass(frozen=True)
class _Formatted:
    format: int


def read_as(
    store: Store, name: str, kind: type[Kind], *, remedy: str = RESTORE, formats: Sequence[int] | None = None
) -> Kind:
    """The record in a file, as an object of a dataclass. If `formats` are given, its field `format` must be among them.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedRecord: if it does not hold such a record; the message ends with `remedy`.
        UserError: if it has another format.
    """
    return Record(store, name, remedy).of(kind, formats)


def read_checked(store: Store, name: str, kind: type[Any], *, remedy: str = RESTORE) -> dict[str, Any]:
    """The JSON object in a file, with all of its fields, once it has been held against a dataclass.

    Raises:
        FileNotFoundError, DamagedRecord: as `read_as` does.
    """
    record = Record(store, name, remedy)
    record.of(kind)
    return record.json()


class Record:
    """The bytes of a record, to be held against dataclasses.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedRecord: if it is too large.
    """

    def __init__(self, store: Store, name: str, remedy: str = RESTORE) -> None:
        self.store, self.name, self.remedy = store, name, remedy
        # A local file that is too large is not read at all; of another store it would cost a request to know its size.
        size, self.data = (store.size(name) or 0) if store.is_local else 0, b""
        if size <= MOST_BYTES:
            try:
                self.data = store.read(name)
            except NotAFile as error:
                raise self.damaged("it is no regular file") from error
        if max(size, len(self.data)) > MOST_BYTES:
            raise self.damaged(f"it has more than {MOST_BYTES:,} bytes")

    def of(self, kind: type[Kind], formats: Sequence[int] | None = None) -> Kind:
        """The record as an object of a dataclass. Raises DamagedRecord and UserError as `read_as` does."""
        shape: Any = kind
        try:
            if formats is not None and (found := _adapter(_Formatted).validate_json(self.data).format) not in formats:
                known = " and ".join(map(str, formats))
                raise UserError(
                    f"{self.name} at {self.store.url} has format {found}, this asyrp knows {known}: update asyrp"
                )
            record: Kind = _adapter(shape).validate_json(self.data, strict=True)
        except ValidationError as error:
            raise self.damaged(_fault(error)) from None
        return record

    def json(self) -> dict[str, Any]:
        """All fields of the record. Call it once the record was held against a dataclass."""
        record: dict[str, Any] = from_json(self.data)
        return record

    def damaged(self, fault: str) -> DamagedRecord:
        """The error that says what is wrong with the record."""
        return DamagedRecord(f"{self.name} at {self.store.url} is damaged, {fault}: {self.remedy}")


def numbered(names: Iterable[str], digits: int) -> list[int]:
    """The numbers of the records among the names of a folder, in order. A record is called NUMBER.json, where the
    number has at least so many digits."""
    stems = (name.removesuffix(".json") for name in names if re.fullmatch(r"[0-9]{1,18}\.json", name))
    return sorted(int(stem) for stem in stems if record_name(int(stem), digits) == f"{stem}.json")


def record_name(number: int, digits: int) -> str:
    """The name of a numbered record in its folder."""
    return f"{number:0{digits}d}.json"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _fault(error: ValidationError) -> str:
    """The first fault as a part of a sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    text = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "json_invalid":
        return f"it is not JSON ({text.removeprefix('invalid JSON: ')})"
    return f"its field '{where}' is wrong ({text})" if where else f"it is not such a record ({text})"
