"""Fetches the bytes of one image from any filesystem, tar or Parquet file, with retries, deadlines and a limit."""

import logging
import posixpath
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from asyrp.errors import UserError
from pipeline.images.objects import (
    Hung,
    TooLarge,
    read_object,
    read_range,
    refuse_larger,
)
from pipeline.images.source import DENIED, MAX_IMAGE_BYTES
from pipeline.storage.credentials import redacted
from pipeline.storage.store import NotRegular, check_regular, open_filesystem, os_errors

log = logging.getLogger(__name__)

ATTEMPTS = 4
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
ROWS_AT_ONCE = 8
STREAM_BYTES = 1_000_000
"""A column of a row group is decoded as a stream: so many rows at a time, from so many bytes of the file."""

SLICE_BYTES = 64_000_000
KEPT_SLICES = 4
"""The cells that were decoded last are kept, up to so many slices of so many bytes."""

CELL_BYTES = 200
"""What a cell takes in memory beside its bytes."""

Answer = TypeVar("Answer")


class ImageLocation(Protocol):
    """The location of an image's bytes. `pipeline.images.source.SourceImage` explains the fields."""

    @property
    def uri(self) -> str: ...
    @property
    def member(self) -> str | None: ...
    @property
    def offset(self) -> int | None: ...
    @property
    def size(self) -> int | None: ...


class Changed(OSError):
    """The object is not the one that was planned: it is another one, or damaged."""


class NoDriver(OSError):
    """No installed filesystem driver opens the URL."""


PERMANENT_ERRORS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotRegular,
    NoDriver,
    TooLarge,
    Changed,
    Hung,
)


def fetch(image: ImageLocation, cells: "ParquetCells | None" = None, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes of an image. `cells` caches parts of Parquet files; by default all threads share one.

    Raises:
        TooLarge: if the image has more than `max_bytes` bytes.
        OSError: if the bytes cannot be read, whatever the driver of the filesystem or file format raised. It is raised
            at once if another attempt cannot help: the object is not there, not allowed, no file, or changed since it
            was planned, or its URL has no driver. Otherwise it is raised as `with_retries` does.
    """
    if image.uri.startswith(DENIED):
        raise PermissionError(image.uri.removeprefix(DENIED))
    refuse_larger(image.size, max_bytes)
    data = with_retries(image.uri, lambda: _read(image, cells or _cells, max_bytes))
    if image.size is not None and len(data) != image.size:
        now = "more" if len(data) == image.size + 1 else len(data)
        raise Changed(f"it had {image.size} bytes when it was planned and has {now} now")
    return data


def with_retries(url: str, read: Callable[[], Answer]) -> Answer:
    """The result of `read`, which reads `url`. Errors that may go away by themselves are tried again.

    Raises:
        OSError: after ATTEMPTS attempts with longer and longer waits between them, or at once for a permanent error.
    """
    attempts = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
        before_sleep=lambda state: _log_failure(url, state),
        reraise=True,
    )
    return attempts(read)


def _log_failure(url: str, state: RetryCallState) -> None:
    error = state.outcome and state.outcome.exception()
    log.warning("%s: attempt %d failed: %s", redacted(url), state.attempt_number, redacted(str(error)))


def _is_transient(error: BaseException) -> bool:
    """Whether an error may go away by itself, like those of a network or a busy server."""
    return isinstance(error, OSError | EOFError) and not isinstance(error, PERMANENT_ERRORS)


@os_errors()
def _read(image: ImageLocation, cells: "ParquetCells", max_bytes: int) -> bytes:
    try:
        fs, path = open_filesystem(image.uri)
    except UserError as error:
        raise NoDriver(str(error)) from error
    if image.member is None or image.offset is None:
        return read_object(fs, path, max_bytes, image.size)
    if image.offset < 0:
        raise Changed(f"a file has no place {image.offset}")
    if path.lower().endswith(".tar"):
        if image.size is None:
            raise Changed("the size of a member of a tar is not known")
        return read_range(fs, path, image.offset, image.offset + image.size, max_bytes)
    return cells.read(fs, path, image.member, image.offset, max_bytes)


@dataclass(frozen=True)
class Cell:
    """A cell of a column of images: the bytes of one, or else the path of its file, as Hugging Face `datasets` write
    it."""

    data: pa.Buffer | None
    path: str | None

    @property
    def size(self) -> int:
        return self.data.size if self.data else 0


class RowGroup:
    """Decodes a column of one row group of a Parquet file from its first row on, a few rows at a time."""

    def __init__(self, fs: AbstractFileSystem, path: str, column: str, group: int, first: int) -> None:
        self.row = first
        self._file = _open(fs, path)
        parquet = pq.ParquetFile(self._file, buffer_size=STREAM_BYTES, pre_buffer=False)
        leaves = _leaves(parquet.schema_arrow, column)
        batches = parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=leaves, use_threads=False)
        self._cells = (cell for batch in batches for cell in _cells_of(batch, column))

    def next(self) -> Cell:
        """The cell of the next row. Raises StopIteration after the last."""
        cell = next(self._cells)
        self.row += 1
        return cell

    def close(self) -> None:
        self._cells.close()
        self._file.close()


class ParquetCells:
    """Reads cells of Parquet columns.

    A row group may be larger than the memory, and a row in it can only be reached by way of those before it. So the
    groups that were read last stay open where they are, and the cells that were passed last are kept, up to `kept`
    slices of SLICE_BYTES: images of a shard lie side by side.
    """

    def __init__(self, kept: int = KEPT_SLICES) -> None:
        self.kept = kept
        self._cells: OrderedDict[tuple[str, str, int], Cell] = OrderedDict()
        self._bytes = 0
        self._groups: OrderedDict[tuple[str, str, int, int], RowGroup] = OrderedDict()
        self._starts: dict[str, list[int]] = {}
        self._lock = Lock()

    def read(self, fs: AbstractFileSystem, path: str, column: str, row: int, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
        """The bytes of one cell, or of the file beside the Parquet file that it names.

        Raises:
            TooLarge: if there are more than `max_bytes` bytes.
            OSError: if the cell is empty, not there or damaged, or it names a file that cannot be read.
        """
        with self._lock, _damage_explained():
            cell = self._cells.get((path, column, row)) or self._decode(fs, path, column, row)
        if cell.data is not None:
            refuse_larger(cell.size, max_bytes)
            return cell.data.to_pybytes()
        if cell.path:
            return read_object(fs, _beside(fs, path, cell.path), max_bytes)
        raise FileNotFoundError(f"column {column} is empty in row {row}")

    def _decode(self, fs: AbstractFileSystem, path: str, column: str, row: int) -> Cell:
        number, first = self._place(fs, path, row)
        group = self._taken(path, column, number, row) or RowGroup(fs, path, column, number, first)
        try:
            while True:
                at, cell = group.row, group.next()
                self._keep((path, column, at), cell)
                if at == row:
                    break
        except StopIteration:
            group.close()
            raise Changed(f"the file has no row {row} any more") from None
        except BaseException:
            group.close()
            raise
        self._groups[path, column, number, group.row] = group
        while len(self._groups) > self.kept:
            self._groups.popitem(last=False)[1].close()
        return cell

    def _taken(self, path: str, column: str, number: int, row: int) -> RowGroup | None:
        """Of this group's open decoders, the one that has come closest to a row. It is in use and no longer kept."""
        places = [place for place in self._groups if place[:3] == (path, column, number) and place[3] <= row]
        return self._groups.pop(max(places)) if places else None

    def _keep(self, place: tuple[str, str, int], cell: Cell) -> None:
        if place in self._cells:
            self._bytes -= self._cells.pop(place).size + CELL_BYTES
        self._cells[place] = cell
        self._bytes += cell.size + CELL_BYTES
        while self._bytes > self.kept * SLICE_BYTES:
            self._bytes -= self._cells.popitem(last=False)[1].size + CELL_BYTES

    def _place(self, fs: AbstractFileSystem, path: str, row: int) -> tuple[int, int]:
        """The number of the row group that holds a row, and the number of its first row."""
        if path not in self._starts:
            with _open(fs, path) as file:
                metadata = pq.ParquetFile(file).metadata
            starts = [0]
            for group in range(metadata.num_row_groups):
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
            self._starts[path] = starts
        starts = self._starts[path]
        if row >= starts[-1]:
            raise Changed(f"the file has no row {row} any more")
        group = bisect_right(starts, row) - 1
        return group, starts[group]


@contextmanager
def _damage_explained() -> Iterator[None]:
    """Turn the errors of the decoder of Parquet into Changed. It raises an OSError without a number too."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise Changed(f"the file is damaged: {error}") from error
    except OSError as error:
        if type(error) is OSError and error.errno is None:
            raise Changed(f"the file is damaged: {error}") from error
        raise


def _open(fs: AbstractFileSystem, path: str) -> Any:
    if isinstance(fs, LocalFileSystem):
        check_regular(path)
        return pa.OSFile(path)  # Arrow reads from it without a copy in Python
    return fs.open(path, "rb")


def _leaves(schema: pa.Schema, column: str) -> list[str]:
    """The Parquet columns to read for a column of images: a column of bytes, or NAME.bytes of a struct."""
    if column in schema.names:
        return [column]
    struct = column.removesuffix(".bytes")
    fields = [field.name for field in schema.field(struct).type] if struct in schema.names else []
    if "bytes" not in fields:
        raise Changed(f"the file has no column {column} any more")
    return [f"{struct}.{name}" for name in ("bytes", "path") if name in fields]


def _cells_of(batch: pa.RecordBatch, column: str) -> Iterator[Cell]:
    if column in batch.schema.names:
        for value in plain_array(batch.column(column)):
            yield Cell(_buffer(value), None)
        return
    structs = batch.column(column.removesuffix(".bytes"))
    paths = structs.field("path").to_pylist() if structs.type.get_field_index("path") >= 0 else [None] * len(structs)
    for value, path in zip(plain_array(structs.field("bytes")), paths, strict=True):
        yield Cell(_buffer(value), path if isinstance(path, str) else None)


def plain_array(array: pa.Array) -> pa.Array:
    """An array without its dictionary, if it has one."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _buffer(value: pa.Scalar) -> pa.Buffer | None:
    if not value.is_valid:
        return None
    if not hasattr(value, "as_buffer"):
        raise Changed(f"its column of images holds {value.type} now")
    return value.as_buffer()


def _beside(fs: AbstractFileSystem, table: str, name: str) -> str:
    """The path of a file that a cell of a table names. Tables come from other people: it must lie beside the table.

    Raises:
        PermissionError: if the name is a URL or leads out of the folder of the table.
    """
    folder = table.rpartition("/")[0]
    path = f"{folder}/{posixpath.normpath(name)}"
    leads_out = name.startswith("/") or "://" in name or ".." in path[len(folder) :].split("/")
    if not leads_out and isinstance(fs, LocalFileSystem):
        leads_out = not Path(path).resolve().is_relative_to(Path(folder).resolve())
    if leads_out:
        raise PermissionError(f"the table names {name[:200]!r}: it may only name files in its own folder")
    return path


_cells = ParquetCells()
