"""The rows of a run with their images, as its commits name them: what a data set is made of."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath

from PIL import Image

from asyrp.errors import UserError
from pipeline.images.codec import FORMATS
from pipeline.images.fetch import Changed, ParquetCells
from pipeline.run.containers import EncodedImage, Sample
from pipeline.run.manifest import Row
from pipeline.run.sinks import read_output, read_source
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

KEPT_ROW_GROUPS = 8
"""Of the run's tables: the edits of as many images as there are threads lie in no more."""


@dataclass(frozen=True)
class ChangedSource:
    """Stands for the samples of an image whose source is another by now than when it was edited."""

    key: str


def read_samples(rows: Iterable[tuple[Store, Row]], with_source: bool) -> Iterator[Sample | ChangedSource]:
    """The samples of manifest rows, each with the root of its run, in their order; a few images in memory at a time.

    A source is read once for all the edits of its image, and they come with the source that was edited or not at all.

    Raises:
        UserError: if an image is not what was committed, or a source cannot be read.
    """

    cells = ParquetCells(KEPT_ROW_GROUPS)

    def read(rows: list[tuple[Store, Row]]) -> Sequence[Sample | ChangedSource]:
        _, first = rows[0]
        wants_source = with_source and any(row["output_uri"] for _, row in rows)
        try:
            source = _source(first) if wants_source else None
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
    """The source of a row. Raises Changed if it is not the one that was edited."""
    try:
        data = read_source(row)
    except Changed:
        raise
    except OSError as error:
        raise UserError(
            f"cannot read the source {row['source_uri']} ({type(error).__name__}): bring it back, or export without "
            "--with-source"
        ) from error
    return EncodedImage(data, _extension(row["key"]) or _extension_of(data))


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _extension_of(data: bytes) -> str:
    """What the bytes of an image say; a cell of a table has no name to go by."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return f".{(image.format or 'png').lower()}"
    except (OSError, Image.DecompressionBombError):
        return ".png"
