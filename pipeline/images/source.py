"""One image of a source, before it is planned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

DENIED = "denied://"
"""Put before what a source names and may not: reading it fails with a sentence, and the image has its row."""


@dataclass(frozen=True)
class Draw:
    """An edit, with a strength, that an image has drawn; `sets` are the labels that it changes, and to what."""

    edit: str
    strength: float
    sets: Mapping[str, float]


@dataclass(frozen=True)
class SourceImage:
    """One image to edit.

    `key` is stable and tells it from all others of the source; `etag` changes when its content does. The bytes are the
    object at `uri` or, with `member`, a part of it at `offset`: a member of a tar (offset in bytes) or a cell of a
    Parquet column (offset in rows). `columns` are what the source says of the image beside it. `labels` and `draws`
    are those of an augmentation.
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


def safe_key(name: str) -> str:
    """A key from a name that somebody else chose: no way out of a folder, no way to its root."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join("_" if part == ".." else part for part in parts) or "_"


def version_of(entry: Mapping[str, Any]) -> str | None:
    """What a listing says that changes with an object's content."""
    return next((str(entry[k]) for k in ("ETag", "etag", "md5Hash", "mtime", "created") if entry.get(k)), None)
