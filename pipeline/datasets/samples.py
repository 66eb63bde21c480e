"""Reads the samples of a data set: rows of a manifest with the images that commits name."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import PurePosixPath

from asyrp.errors import UserError
from pipeline.images.codec import format_of
from pipeline.images.fetch import Changed, ParquetCells
from pipeline.images.source import DENIED, EXTENSIONS, FORMATS
from pipeline.run.containers import EncodedImage, Sample
from pipeline.run.manifest import Row
from pipeline.run.sinks import read_output, read_source
from pipeline.sources.origin import Origin
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

KEPT_ROW_GROUPS = 8
"""Row groups of the run's tables held in memory. The edits of the images that the threads read at once lie
in no more."""


@dataclass(frozen=True)
class ChangedSource:
    """Stands for the samples of an image whose source has changed since it was edited."""

    key: str


def read_samples(rows: Iterable[tuple[Store, Row]], with_source: bool) -> Iterator[Sample | ChangedSource]:
    """The samples of manifest rows, in their order. Each row comes with the root of its run. A few images are in memory
    at a time.

    With `with_source`, the source of an image is read once for all of its edits. If it is not the one that was edited,
    a ChangedSource comes in place of the image's samples.

    Raises:
        UserError: if the bytes of an image are not those that were committed, or a source cannot be read.
    """

    cells, origin_of = ParquetCells(KEPT_ROW_GROUPS), cache(Origin)

    def read(rows: list[tuple[Store, Row]]) -> Sequence[Sample | ChangedSource]:
        root, first = rows[0]
        wants_source = with_source and any(row["output_uri"] for _, row in rows)
        try:
            source = _source(origin_of(root).held(first)) if wants_source else None
        except Changed:
            return [ChangedSource(first["key"])]
        return [_sample(store, row, source, cells) for store, row in rows]

    by_image = (list(of_image) for _, of_image in groupby(rows, key=lambda found: found[1]["key"]))
    for samples in read_ahead(read, by_image):
        yield from samples


def _sample(store: Store, row: Row, source: EncodedImage | None, cells: ParquetCells) -> Sample:
    if row["output_uri"] is None:
        return Sample.of(row, None)
    edited = EncodedImage(read_output(store, row, cells), _extension(row["output_member"] or row["output_uri"]))
    return Sample.of(row, edited, source)


def _source(row: Row) -> EncodedImage:
    """The source image of a row.

    Raises:
        Changed: if it is not the one that was edited.
        UserError: if it cannot be read, or must not be.
    """
    if row["source_uri"].startswith(DENIED):
        raise UserError(
            f"the manifest row of {row['key']!r} names a source that was not read for it: "
            f"{row['source_uri'].removeprefix(DENIED)}: export without --with-source"
        )
    if row["source_sha256"] is None:
        raise UserError(
            f"the manifest row of {row['key']!r} has no SHA-256 of its source, so nothing says that "
            f"{row['source_uri']} is what was edited: export without --with-source"
        )
    try:
        data = read_source(row)
    except Changed:
        raise
    except OSError as error:
        raise UserError(
            f"cannot read the source {row['source_uri']} ({type(error).__name__}): bring it back, or export without "
            "--with-source"
        ) from error
    extension = _extension(row["key"])
    return EncodedImage(data, extension if extension in EXTENSIONS else _extension_of(data))


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _extension_of(data: bytes) -> str:
    """The extension that fits the bytes of an image. The key of a table's row need not tell it."""
    name = format_of(data)
    return ".png" if name is None else FORMATS[name][0]
