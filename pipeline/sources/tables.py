"""Lists images in the cells of Parquet files, and at URLs in Parquet, CSV and text files.

To list a Parquet file, only its schema is read and the columns that the listing needs: URLs, keys, and the columns of
the selection. Keys are text: what a table has in its column `key` is the key, to the sign.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Literal
from urllib.parse import SplitResult, urlsplit

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from asyrp.errors import UserError
from pipeline.images.fetch import plain_array
from pipeline.images.keys import safe_key
from pipeline.images.selection import Cell, Selection, some_names
from pipeline.images.source import DENIED, SourceImage, version_of
from pipeline.storage.credentials import names_user, redacted
from pipeline.storage.text import is_text

URL_COLUMNS = ("url", "uri", "image_url", "image_uri", "URL")
IMAGE_COLUMNS = ("image", "img", "bytes", "jpg", "png", "webp", "content", "data")
CHAIN = re.compile(r"::[A-Za-z][A-Za-z0-9+.-]*(://|::)|::/")
LISTED_SCHEMES = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")
KEY = "key"
BATCH = 1_000
LONGEST_LINE = 100_000
"""The most letters of a line of a list."""

LONGEST_URL = 8_000
LONGEST_ROW = 1_000_000
"""The most bytes of a row of a CSV file. So many are in memory at a time."""

Row = Mapping[str, Any]
Kind = Literal["bytes", "structs", "urls"]


def images_of_parquet(fs: AbstractFileSystem, path: str, prefix: str, selection: Selection) -> Iterator[SourceImage]:
    """The images in a column of a Parquet file.

    The column holds bytes, structs of Hugging Face `datasets`, or URLs.

    Raises:
        UserError: if it is not a Parquet file, or the column of images is not clear.
    """
    uri = fs.unstrip_protocol(path)
    version = version_of(fs.info(path))
    with _explained(uri, "Parquet"), fs.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        column = selection.image_column or _image_column(schema, uri)
        kind = _kind(_field(schema, column, uri), uri)
        wanted = _columns(schema, column, selection, uri)
        if kind == "urls":
            yield from _listed(_rows(parquet, [column, *wanted]), column, prefix)
            return
        member = f"{column}.bytes" if kind == "structs" else column
        if kind == "structs" and member in schema.names:
            raise UserError(f"{uri} has a column '{member}' beside the structs '{column}': rename one of them")
        for number, row in enumerate(_rows(parquet, wanted)):
            key = prefix + _key(row, f"{number:08d}")
            yield SourceImage(key, uri, etag=version, member=member, offset=number, columns=row)


def images_of_csv(fs: AbstractFileSystem, path: str, prefix: str, selection: Selection) -> Iterator[SourceImage]:
    """The images at the URLs in a column of a CSV file. Its cells are read as text.

    Raises:
        UserError: if it is not a CSV file in UTF-8, or it has no such column.
    """
    uri = fs.unstrip_protocol(path)
    with _explained(uri, "CSV"), fs.open(path, "rb") as file:
        names = _csv_names(file, uri)
        column = selection.image_column or next((name for name in URL_COLUMNS if name in names), "url")
        if column not in names:
            raise UserError(f"{uri} has no column '{column}': it has {some_names(names)}; give --image-column")
        key = [KEY] if KEY in names else []
        wanted = list(dict.fromkeys([column, *key, *selection.columns_of(names)]))
        for name in wanted:
            _refuse_twins(names.count(name), name, uri)
        file.seek(0)
        yield from _listed(_csv_rows(file, wanted, uri), column, prefix)


def images_of_text(fs: AbstractFileSystem, path: str, prefix: str, selection: Selection) -> Iterator[SourceImage]:  # noqa: ARG001
    """The images at the URLs of a text file, one on each line. Empty lines and lines that begin with # are skipped.

    Raises:
        UserError: if it is not text in UTF-8, or a line is too long.
    """
    uri = fs.unstrip_protocol(path)
    with fs.open(path, "r", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = (line.strip() for line in _lines(file, uri))
        yield from _listed(({"url": line} for line in lines if line and not line.startswith("#")), "url", prefix)


@contextmanager
def _explained(uri: str, form: str) -> Iterator[None]:
    """Turn the errors of a reader of tables into a UserError. Those of the filesystem pass."""
    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError) as error:
        straddles = "straddling" in str(error)  # Arrow's word for a row of CSV that is longer than a block
        what = f"it has a row of over {LONGEST_ROW:,} bytes, or an open quote" if straddles else error
        raise UserError(f"{uri} cannot be read as {form}: {what}") from error


def _image_column(schema: pa.Schema, uri: str) -> str:
    """The column of images: one of structs with bytes, or else one of bytes, or else one of URLs.

    If there are several of a kind, a column with a usual name is taken.

    Raises:
        UserError: if there is no such column, or several and none has a usual name.
    """
    structs = [field.name for field in schema if _holds_structs(field.type)]
    blobs = [field.name for field in schema if _holds_bytes(field.type) and field.name not in (KEY, *URL_COLUMNS)]
    urls = [field.name for field in schema if field.name in URL_COLUMNS]
    for names, known in ((structs, IMAGE_COLUMNS), (blobs, IMAGE_COLUMNS), (urls, URL_COLUMNS)):
        if len(names) == 1:
            return names[0]
        if likely := [name for name in known if name in names]:
            return likely[0]
        if names:
            shown = some_names(names)
            raise UserError(f"{uri} has several columns of images, {shown}: choose one with --image-column")
    raise UserError(f"{uri} has no column of images or URLs: it has {some_names(schema.names)}; give --image-column")


def _field(schema: pa.Schema, name: str, uri: str) -> pa.Field:
    """A column of a table. Raises UserError if there is none of this name, or there are several."""
    places = schema.get_all_field_indices(name)
    if not places:
        raise UserError(f"{uri} has no column '{name}': it has {some_names(schema.names)}")
    _refuse_twins(len(places), name, uri)
    return schema.field(places[0])


def _refuse_twins(count: int, name: str, uri: str) -> None:
    if count > 1:
        raise UserError(f"{uri} has {count} columns '{name}': rename all but one")


def _kind(field: pa.Field, uri: str) -> Kind:
    """What a column of images holds. Raises UserError if it is nothing that can be read."""
    if _holds_structs(field.type):
        return "structs"
    if _holds_bytes(field.type):
        return "urls" if field.name in URL_COLUMNS else "bytes"
    if _holds_text(field.type):
        return "urls"
    raise UserError(
        f"the column '{field.name}' of {uri} holds {str(field.type)[:200]}: images are bytes, structs with bytes, or "
        "URLs; choose another column with --image-column"
    )


def _values(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a column, which may be held in a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_bytes(kind: pa.DataType) -> bool:
    values, types = _values(kind), pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_of(values) for is_of in tests)


def _holds_text(kind: pa.DataType) -> bool:
    values, types = _values(kind), pa.types
    return any(is_of(values) for is_of in (types.is_string, types.is_large_string, types.is_string_view))


def _holds_structs(kind: pa.DataType) -> bool:
    """Whether a column holds images as Hugging Face `datasets` write them: their bytes or else a path."""
    if not pa.types.is_struct(kind):
        return False
    of = {field.name: field.type for field in kind}
    if "bytes" not in of:
        return False
    return _holds_bytes(of["bytes"]) or (pa.types.is_null(of["bytes"]) and "path" in of and _holds_text(of["path"]))


def _columns(schema: pa.Schema, image_column: str, selection: Selection, uri: str) -> list[str]:
    """The columns to read beside that of the images: the keys, and what the selection needs.

    Raises:
        UserError: if one is not there, or there twice, or has no values that can be a key.
    """
    plain = [field.name for field in schema if not pa.types.is_nested(field.type) and field.name != image_column]
    if KEY in schema.names and image_column != KEY and KEY not in plain:
        raise UserError(f"the column '{KEY}' of {uri} holds {schema.field(KEY).type}: keys are texts or numbers")
    texts = [name for name in plain if name == KEY or not _holds_bytes(schema.field(schema.names.index(name)).type)]
    wanted = list(dict.fromkeys([*([KEY] if KEY in plain else []), *selection.columns_of(texts)]))
    for name in wanted:
        _field(schema, name, uri)
    return wanted


def _rows(parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[Row]:
    if not columns:
        yield from ({} for _ in range(parquet.metadata.num_rows))
        return
    for batch in parquet.iter_batches(BATCH, columns=list(columns)):
        values = [_python(batch.column(name)) for name in columns]
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _python(array: pa.Array) -> list[Any]:
    """The values of a column. Text that is not UTF-8 gets surrogates, as names of files do."""
    array = plain_array(array)
    if _holds_text(array.type) or _holds_bytes(array.type):
        raw = array.cast(pa.large_binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]
    return array.to_pylist()


def _csv_names(file: IO[bytes], uri: str) -> list[str]:
    """The names of the columns of a CSV file."""
    if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{uri} is UTF-16: save it as UTF-8")
    file.seek(0)
    try:
        with _csv_reader(file, pa_csv.ConvertOptions(check_utf8=False)) as reader:
            return list(reader.schema.names)
    except UnicodeDecodeError:
        raise UserError(f"{uri} is not UTF-8 in its first line: save it as UTF-8") from None


def _csv_rows(file: IO[bytes], columns: Sequence[str], uri: str) -> Iterator[Row]:
    """The cells of some columns, as text. Raises UserError for a cell that is not UTF-8."""
    options = pa_csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.binary()))
    number = 0
    with _csv_reader(file, options) as reader:
        for batch in reader:
            for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                number += 1
                try:
                    cells = [Cell(cell, "utf-8") for cell in row]
                except UnicodeDecodeError:
                    raise UserError(
                        f"row {number} of {uri} is not UTF-8 (line {number + 1}, if no cell has several lines): save "
                        "it as UTF-8"
                    ) from None
                yield dict(zip(columns, cells, strict=True))


def _csv_reader(file: IO[bytes], convert: pa_csv.ConvertOptions) -> pa_csv.CSVStreamingReader:
    read, parse = pa_csv.ReadOptions(block_size=LONGEST_ROW), pa_csv.ParseOptions(newlines_in_values=True)
    return pa_csv.open_csv(file, read, parse, convert)


def _lines(file: IO[str], uri: str) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UserError(f"line {number} of {uri} has over {LONGEST_LINE:,} letters: a list has a URL on each line")
        if not is_text(line):
            raise UserError(f"line {number} of {uri} is not UTF-8: save it as UTF-8")
        yield line


def _listed(rows: Iterator[Row], column: str, prefix: str) -> Iterator[SourceImage]:
    """The images at listed URLs. A URL that a list must not name is denied, and its key shows no password.

    Lists come from other people. They must not name files of this machine. Their URLs get into keys and manifests,
    which must not hold a password.
    """
    for number, row in enumerate(rows):
        url = str(row[column] or "")
        columns = {name: value for name, value in row.items() if name != column}
        if len(url) > LONGEST_URL:
            uri, named = f"{DENIED}it has {len(url):,} letters, and a URL may have {LONGEST_URL:,}", ""
        else:
            uri, named = (url, url) if may_be_listed(url) else (_denied(url), redacted(url))
        yield SourceImage(prefix + _key(row, key_of_url(named, number)), uri, columns=columns)


def _key(row: Row, otherwise: str) -> str:
    """The key that a row has, or `otherwise` if it has none: no such column, or an empty cell."""
    key = row.get(KEY)
    return otherwise if key is None or key == "" else safe_key(str(key))


def key_of_url(url: str, number: int) -> str:
    """The key of a URL: its host and path, and a hash of its query if it has one; `number` if the text is no URL."""
    parts = _split(url)
    if not parts or not parts.scheme or not (parts.netloc + parts.path).strip("/"):
        return f"{number:08d}"
    key = safe_key(parts.netloc + parts.path)
    if not parts.query:
        return key
    folder, slash, base = key.rpartition("/")
    stem, dot, extension = base.partition(".")
    query = hashlib.sha256(parts.query.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{folder}{slash}{stem}-{query}{dot}{extension}"


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def may_be_listed(url: str) -> bool:
    chained = CHAIN.search(url) is not None  # filesystems of fsspec, of which the last could be a local one
    parts = _split(url)
    return parts is not None and parts.scheme in LISTED_SCHEMES and not chained and not names_user(url)


def _denied(url: str) -> str:
    shown = json.dumps(redacted(url)[:200])
    return f"{DENIED}{shown} is not a URL that a list may name: give http(s), s3, gs or az, without a password"
