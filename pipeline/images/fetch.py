"""Fetches the bytes of one image from any filesystem, tar or Parquet file, with retries and deadlines."""

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Protocol, TypeVar

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from asyrp.errors import UserError
from pipeline.images.source import DENIED
from pipeline.storage.credentials import redacted
from pipeline.storage.store import open_filesystem, os_errors

log = logging.getLogger(__name__)

ATTEMPTS = 4
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
DEADLINE_SECONDS = 60.0
"""The deadline of one attempt at one object, on filesystems that work asynchronously over a network."""

KEPT_ROW_GROUPS = 4
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
    """The object is not the one that was planned."""


class NoDriver(OSError):
    """No installed filesystem driver opens the URL."""


PERMANENT_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NoDriver)


def fetch(image: ImageLocation, cells: "ParquetCells | None" = None) -> bytes:
    """The bytes of an image. `cells` caches parts of Parquet files; by default all threads share one.

    Raises:
        OSError: if the bytes cannot be read. It is raised at once if another attempt cannot help: the object is not
            there, not allowed or changed since it was planned, or its URL has no driver. Otherwise it is raised as
            `with_retries` does.
    """
    if image.uri.startswith(DENIED):
        raise PermissionError(image.uri.removeprefix(DENIED))
    data = with_retries(image.uri, lambda: _read(image, cells or _cells))
    if image.size is not None and len(data) != image.size:
        raise Changed(f"it had {image.size} bytes when it was planned and has {len(data)} now")
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


def _read(image: ImageLocation, cells: "ParquetCells") -> bytes:
    try:
        fs, path = open_filesystem(image.uri)
    except UserError as error:
        raise NoDriver(str(error)) from error
    if image.member is None or image.offset is None:
        return _range(fs, path, None, None)
    if path.lower().endswith(".tar"):
        assert image.size is not None
        return _range(fs, path, image.offset, image.offset + image.size)
    return cells.read(fs, path, image.member, image.offset)


def _range(fs: AbstractFileSystem, path: str, start: int | None, end: int | None) -> bytes:
    with os_errors():
        if isinstance(fs, AsyncFileSystem):
            return sync(fs.loop, fs._cat_file, path, start=start, end=end, timeout=DEADLINE_SECONDS)
        return fs.cat_file(path, start=start, end=end)


class ParquetCells:
    """Reads cells of Parquet columns, and keeps the row groups read last: images of a shard lie side by side."""

    def __init__(self, kept: int = KEPT_ROW_GROUPS) -> None:
        self.kept = kept
        self._groups: OrderedDict[tuple[str, str, int], list[bytes | None]] = OrderedDict()
        self._starts: dict[str, list[int]] = {}
        self._lock = Lock()

    def read(self, fs: AbstractFileSystem, path: str, column: str, row: int) -> bytes:
        """The bytes of one cell. Raises OSError if the cell is empty or not there."""
        with self._lock:
            group, first = self._row_group(fs, path, row)
            name = (path, column, group)
            if name not in self._groups:
                self._groups[name] = self._load(fs, path, column, group)
                while len(self._groups) > self.kept:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(name)
            cells = self._groups[name]
        data = cells[row - first]
        if data is None:
            raise FileNotFoundError(f"column {column} is empty in row {row}")
        return data

    def _row_group(self, fs: AbstractFileSystem, path: str, row: int) -> tuple[int, int]:
        """The number of the row group that holds a row, and the number of its first row."""
        if path not in self._starts:
            with fs.open(path, "rb") as file:
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

    @staticmethod
    def _load(fs: AbstractFileSystem, path: str, column: str, group: int) -> list[bytes | None]:
        with fs.open(path, "rb") as file:
            table = pq.ParquetFile(file).read_row_group(group, columns=[column])
        top, *inner = column.split(".")
        cells = table[top].combine_chunks()
        return (cells.field(inner[0]) if inner else cells).to_pylist()


_cells = ParquetCells()
