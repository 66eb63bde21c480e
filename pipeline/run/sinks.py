"""Writes the finished images of an attempt to a sink, and reads any of them again.

| sink | an attempt's images are |
|---|---|
| files | a file each, under its output name |
| webdataset | members of one tar, each with the values of its row in a JSON member beside it |
| parquet | cells of one table, with the values of their rows in the other columns |

The bytes of an image are the same in every sink. The manifest says where they are: `output_uri` names the file. In a
tar or table, `output_member` names the image, and `output_offset` is its first byte (tar) or its row (table).
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Lock
from typing import IO, Protocol

import pyarrow as pa

from asyrp.errors import UserError
from pipeline.images.fetch import Changed, ParquetCells, fetch
from pipeline.images.source import SourceImage
from pipeline.run.commit import Attempt
from pipeline.run.containers import IMAGE_COLUMN, AddSample, EncodedImage, Sample, parquet_writer, tar_writer
from pipeline.run.manifest import Row, source_of
from pipeline.run.stage import SinkName
from pipeline.storage.store import Store

FILES_PER_FOLDER = 2_000
SPOOLED_BYTES = 64_000_000
"""The bytes of a shard's encoded images that may wait in memory. If there are more, they wait on the local disk."""


class Sink(Protocol):
    """Takes the finished images of one attempt, in any order and from several threads."""

    def put(self, number: int, name: str, data: bytes) -> Row:
        """Take the image of row `number` of the manifest. Returns the manifest columns that are already known."""

    def finish(self, rows: Sequence[Row]) -> None:
        """Write the images that have waited, and add their columns to `rows`, which are all rows of the manifest."""

    def close(self) -> None:
        """Drop the images that have waited."""


def open_sink(name: SinkName, attempt: Attempt, rows: int) -> Sink:
    """Open the sink of an attempt whose manifest will have `rows` rows."""
    if name == "files":
        return FileSink(attempt, rows)
    if name == "webdataset":
        return ContainerSink(attempt, "images.tar", tar_writer)
    return ContainerSink(attempt, "images.parquet", parquet_writer)


class FileSink:
    """Writes image files. If there are many, they go to numbered folders of at most FILES_PER_FOLDER files each."""

    def __init__(self, attempt: Attempt, rows: int) -> None:
        self.attempt, self.fans_out = attempt, rows > FILES_PER_FOLDER

    def put(self, number: int, name: str, data: bytes) -> Row:
        folder = f"{number // FILES_PER_FOLDER:04d}/" if self.fans_out else ""
        file = self.attempt.write(folder + name, data)
        return {"output_uri": file.path, "output_bytes": file.bytes, "output_sha256": file.sha256}

    def finish(self, rows: Sequence[Row]) -> None:
        pass

    def close(self) -> None:
        pass


class ContainerSink:
    """Writes one file with all images in the order of the manifest. Images wait in a spool until the shard is done."""

    def __init__(
        self, attempt: Attempt, name: str, writer: Callable[[IO[bytes]], AbstractContextManager[AddSample]]
    ) -> None:
        self.attempt, self.name, self.writer = attempt, name, writer
        self._spool = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115
        self._waiting: dict[int, tuple[str, int]] = {}  # by row: the image's name, and its first byte in the spool
        self._lock = Lock()

    def put(self, number: int, name: str, data: bytes) -> Row:
        with self._lock:
            self._waiting[number] = name, self._spool.seek(0, os.SEEK_END)
            self._spool.write(data)
        return {"output_bytes": len(data), "output_sha256": hashlib.sha256(data).hexdigest()}

    def finish(self, rows: Sequence[Row]) -> None:
        if not self._waiting:
            return
        with self.attempt.writing(self.name) as (path, stream), self.writer(stream) as add:
            for number, (name, start) in sorted(self._waiting.items()):
                row, (stem, dot, ending) = rows[number], name.rpartition(".")
                self._spool.seek(start)
                image = EncodedImage(self._spool.read(row["output_bytes"]), dot + ending)
                place = add(stem, Sample.of(row, image))
                assert place is not None
                row |= {"output_uri": path, "output_member": place.member, "output_offset": place.offset}

    def close(self) -> None:
        self._spool.close()


class DamagedOutput(UserError):
    """A finished image is missing, or not the one that was committed."""


def output_image(store: Store, row: Row) -> SourceImage:
    """The finished image of a row, as `fetch` takes it. Its key is that of its source image."""
    uri = store.fs.unstrip_protocol(store.path(row["output_uri"]))
    return SourceImage(
        row["key"],
        uri,
        size=row["output_bytes"],
        etag=row["output_sha256"],
        member=f"{IMAGE_COLUMN}.bytes" if uri.endswith(".parquet") else row["output_member"],
        offset=row["output_offset"],
    )


def read_output(store: Store, row: Row, cells: ParquetCells | None = None) -> bytes:
    """The bytes of the finished image of a row, as they were committed. `cells` is that of `fetch`.

    Raises:
        DamagedOutput: if the bytes are missing, or others than were committed.
        OSError: if the store does not answer.
    """
    name = " in ".join(filter(None, (row["output_member"], row["output_uri"])))
    changed = DamagedOutput(f"{name} at {store.url} is not what was committed: asyrp verify --deep says what to do")
    try:
        data = fetch(output_image(store, row), cells)
    except FileNotFoundError:
        raise DamagedOutput(f"{name} is missing at {store.url}: asyrp verify says what to do") from None
    except (Changed, pa.ArrowException) as error:
        raise changed from error
    if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
        raise changed
    return data


def read_source(row: Row) -> bytes:
    """The bytes of the source image of a row.

    Raises:
        Changed: if it is not the image that was edited.
        OSError: if it cannot be fetched.
    """
    data = fetch(source_of(row))
    if row["source_sha256"] not in (None, hashlib.sha256(data).hexdigest()):
        raise Changed("it has other bytes than when it was edited")
    return data
