"""Lists images in the cells of Parquet files, and at URLs in Parquet, CSV and text files.

To list a Parquet file, only its schema is read and the columns that the listing needs: URLs, keys, and the columns of
the selection.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from asyrp.errors import UserError
from pipeline.images.keys import safe_key
from pipeline.images.selection import Selection
from pipeline.images.source import DENIED, SourceImage, version_of
from pipeline.storage.credentials import names_user, redacted

URL_COLUMNS = ("url", "uri", "image_url", "image_uri", "URL")
IMAGE_COLUMNS = ("image", "img", "bytes", "jpg", "png", "webp", "content", "data")
LISTED_SCHEMES = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")
KEY = "key"
BATCH = 10_000


def images_of_parquet(fs: AbstractFileSystem, path: str, prefix: str, selection: Selection) -> Iterator[SourceImage]:
    """The images in a column of a Parquet file.

    The column holds bytes, structs of Hugging Face `datasets`, or URLs.

    Raises:
        UserError: if it is not a Parquet file, or the column of images is not clear.
    """
    uri = fs.unstrip_protocol(path)
    version = version_of(fs.info(path))
    try:
        with fs.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            column = selection.image_column or _image_column(schema, uri)
            if column not in schema.names:
                raise UserError(f"{uri} has no column '{column}': it has {', '.join(schema.names)}")
            plain = [f.name for f in schema if f.name != column and not pa.types.is_nested(f.type)
                     and not pa.types.is_binary(f.type)]  # fmt: skip
            wanted = plain if selection.reads_columns else [name for name in plain if name == KEY]
            if _holds_urls(schema.field(column)):
                rows = _rows(parquet, [column, *wanted])
                yield from _listed(rows, column, prefix)
                return
            member = f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column
            for number, row in enumerate(_rows(parquet, wanted)):
                key = safe_key(str(row[KEY])) if KEY in row else f"{number:08d}"
                yield SourceImage(prefix + key, uri, etag=version, member=member, offset=number, columns=row)
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri} is no Parquet file: {error}") from error


def images_of_csv(fs: AbstractFileSystem, path: str, prefix: str, selection: Selection) -> Iterator[SourceImage]:
    """The images at the URLs in a column of a CSV file.

    Raises:
        UserError: if it is not a CSV file, or it has no such column.
    """
    uri = fs.unstrip_protocol(path)
    try:
        with fs.open(path, "rb") as file, pa_csv.open_csv(file) as reader:
            names = reader.schema.names
            column = selection.image_column or next((name for name in URL_COLUMNS if name in names), "url")
            if column not in names:
                raise UserError(f"{uri} has no column '{column}': it has {', '.join(names)}; give --image-column")
            rows = (row for batch in reader for row in batch.to_pylist())
            yield from _listed(rows, column, prefix)
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri} is no CSV file: {error}") from error


def images_of_text(fs: AbstractFileSystem, path: str, prefix: str, selection: Selection) -> Iterator[SourceImage]:  # noqa: ARG001
    """The images at the URLs of a text file, one on each line. Empty lines and lines that begin with # are skipped."""
    with fs.open(path, "r", encoding="utf-8") as file:
        lines = (line.strip() for line in file)
        yield from _listed(({"url": line} for line in lines if line and not line.startswith("#")), "url", prefix)


def _image_column(schema: pa.Schema, uri: str) -> str:
    """The column of images: one of structs with bytes, or else one of bytes, or else one of URLs.

    If there are several of a kind, a column with a usual name is taken.

    Raises:
        UserError: if there is no such column, or several and none has a usual name.
    """
    structs = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    blobs = [f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    urls = [f.name for f in schema if f.name in URL_COLUMNS]
    for names, known in ((structs, IMAGE_COLUMNS), (blobs, IMAGE_COLUMNS), (urls, URL_COLUMNS)):
        if len(names) == 1:
            return names[0]
        if likely := [name for name in known if name in names]:
            return likely[0]
        if names:
            raise UserError(f"{uri} has several columns of images, {', '.join(names)}: choose one with --image-column")
    raise UserError(f"{uri} has no column of images or URLs: it has {', '.join(schema.names)}; give --image-column")


def _holds_urls(field: pa.Field) -> bool:
    return pa.types.is_string(field.type) or pa.types.is_large_string(field.type)


def _rows(parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(parquet.metadata.num_rows))
        return
    for batch in parquet.iter_batches(BATCH, columns=list(columns)):
        yield from batch.to_pylist()


def _listed(rows: Iterator[Mapping[str, Any]], column: str, prefix: str) -> Iterator[SourceImage]:
    """The images at listed URLs. A URL that a list must not name is denied, and its key shows no password.

    Lists come from other people. They must not name files of this machine. Their URLs get into keys and manifests,
    which must not hold a password.
    """
    for number, row in enumerate(rows):
        url = str(row[column] or "")
        columns = {name: value for name, value in row.items() if name != column}
        uri, named = (url, url) if _may_be_listed(url) else (_denied(url), redacted(url))
        key = safe_key(str(row[KEY])) if row.get(KEY) is not None else key_of_url(named, number)
        yield SourceImage(prefix + key, uri, columns=columns)


def key_of_url(url: str, number: int) -> str:
    """The key of a URL: its host and path, and a hash of its query if it has one; `number` if the text is no URL."""
    parts = urlsplit(url)
    if not parts.scheme or not (parts.netloc + parts.path).strip("/"):
        return f"{number:08d}"
    key = safe_key(parts.netloc + parts.path)
    if not parts.query:
        return key
    folder, slash, base = key.rpartition("/")
    stem, dot, extension = base.partition(".")
    return f"{folder}{slash}{stem}-{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}{dot}{extension}"


def _may_be_listed(url: str) -> bool:
    chained = "::" in url  # chained filesystems of fsspec, which could hide a local one
    return urlsplit(url).scheme in LISTED_SCHEMES and not chained and not names_user(url)


def _denied(url: str) -> str:
    shown = json.dumps(redacted(url)[:200])
    return f"{DENIED}{shown} is not a URL that a list may name: give http(s), s3, gs or az, without a password"
