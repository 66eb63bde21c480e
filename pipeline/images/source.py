"""Describes one image of a source, before it is planned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMATS: Mapping[str, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""The formats that are read, as Pillow calls them, with the extensions of their files; the usual one comes first.

Formats that run programs (EPS), hold whole documents or are rare in data sets are left out."""

EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)

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


def safe_key(name: str) -> str:
    """A key made from a name that somebody else chose. It is relative and has no `..`, so it cannot leave a folder."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join("_" if part == ".." else part for part in parts) or "_"


def version_of(entry: Mapping[str, Any]) -> str | None:
    """The value in a listing's entry that changes with the object's content: an etag, a hash or a time."""
    return next((str(entry[k]) for k in ("ETag", "etag", "md5Hash", "mtime", "created") if entry.get(k)), None)
