"""Describes one image of a source, before it is planned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.storage.text import is_text

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

MAX_IMAGE_BYTES = 256_000_000
"""The most bytes of one encoded image, where a spec does not say."""

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


def recordable(image: SourceImage) -> SourceImage:
    """The image as records can hold it: with backslashes for what is not UTF-8, and denied if its location is not."""
    if is_text(f"{image.uri}{image.member}{image.etag}"):
        return image
    uri = image.uri if is_text(image.uri) else f"{DENIED}its name is not UTF-8: rename it"
    member, etag = (escaped(text) if text else text for text in (image.member, image.etag))
    return replace(image, uri=uri, member=member, etag=etag)


def escaped(text: str) -> str:
    """The text with a backslash and a number for each byte that is not UTF-8: `caf\\xe9` for a name in Latin-1."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte, as JSON may hold
        return text.encode("utf-8", "backslashreplace").decode()


def version_of(entry: Mapping[str, Any]) -> str | None:
    """The value in a listing's entry that changes with the object's content: an etag, a hash or a time."""
    return next((str(entry[k]) for k in ("ETag", "etag", "md5Hash", "mtime", "created") if entry.get(k)), None)
