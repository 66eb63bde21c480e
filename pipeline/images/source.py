"""Describes one image of a source, before it is planned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

DENIED = "denied://"
"""The prefix of a location that a source names and must not name. After it comes a sentence that says why.

Fetching such an image fails with that sentence, and the image still gets its manifest row."""


@dataclass(frozen=True)
class Draw:
    """An edit that an image has drawn, with its strength. `sets` gives the new values of the labels that it changes."""

    edit: str
    strength: float
    sets: Mapping[str, float]


@dataclass(frozen=True)
class SourceImage:
    """One image to edit.

    `key` is stable and unique in the source. `etag` changes when the content of the image changes. `size` is in bytes.
    The bytes are the object at `uri` or, with `member`, a part of it at `offset`: a member of a tar (offset in bytes)
    or a cell of a Parquet column (offset in rows). `columns` holds the other values that the source has for the image.
    An augmentation adds `labels` and `draws`.
    """

    key: str
    uri: str
    size: int | None = None
    etag: str | None = None
    member: str | None = None
    offset: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, float] | None = None
    draws: Sequence[Draw] = ()


def version_of(entry: Mapping[str, Any]) -> str | None:
    """The value in a listing's entry that changes with the object's content: an etag, a hash or a time."""
    return next((str(entry[k]) for k in ("ETag", "etag", "md5Hash", "mtime", "created") if entry.get(k)), None)
