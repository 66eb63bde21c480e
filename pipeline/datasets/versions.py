"""The versions of a data set that grows. A version says which rows of which runs make it up; all of it is on storage.

A version has an index, a Parquet file of manifest rows that names the run of each row, and a small record that names
the index. The record is created last, under the next number, if no other has that number. A reader takes the highest
number, so it sees one whole version. Of two drivers only one makes a version. Record and index never change.
"""

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from io import BufferedIOBase
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from asyrp.errors import UserError
from pipeline.run import manifest
from pipeline.run.commit import HashingStream
from pipeline.run.manifest import Row
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.records import RESTORE, Count, DamagedRecord, numbered, read_as, record_name
from pipeline.storage.store import Store, os_errors

FOLDER = "versions"
INDEXES = f"{FOLDER}/index"
DIGITS = 6
FORMAT = 1
BATCH = 10_000
INDEX = manifest.SCHEMA.append(pa.field("run", pa.string(), nullable=False)).append(
    pa.field("recipe", pa.string(), nullable=False)
)
"""The columns of an index: those of a manifest, the root of the row's run (relative to the data set's root if it is
below it), and the digest of the recipe by which the run makes an image."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """The record of a version: what it was made from and how much is in it.

    `run` is None if images were only dropped. `changes` counts images by what became of them since the version before.
    `rows` counts rows by status, `parts` counts them by run, the oldest run first. An earlier asyrp did not record the
    size and SHA-256 of the index.
    """

    number: int
    tick: str
    run: str | None
    spec_digest: str
    created_at: str
    index: str
    images: Count
    rows: dict[str, Count]
    parts: dict[str, Count]
    changes: dict[str, Count]
    format: int = FORMAT
    index_bytes: Count | None = None
    index_sha256: str | None = None

    @property
    def last_run(self) -> str | None:
        """The newest run that has rows in the version; None if it has no rows."""
        return list(self.parts)[-1] if self.parts else None


class DamagedIndex(UserError):
    """The index of a version is missing, or not as it was written."""


def latest(store: Store) -> Version | None:
    """The newest version of the data set at `store`; None if there is none yet."""
    numbers = _numbers(store)
    return read_version(store, max(numbers)) if numbers else None


def read_version(store: Store, number: int) -> Version:
    """A version by its number.

    Raises:
        UserError: if there is none, or a later version of asyrp wrote it.
    """
    name = _name(number)
    try:
        version = read_as(store, name, Version, formats=[FORMAT])
    except FileNotFoundError:
        raise UserError(f"the data set at {store.url} has no version {number}") from None
    if version.number != number:
        raise DamagedRecord(f"{name} at {store.url} is damaged, it is version {version.number}: {RESTORE}")
    return version


def read_versions(store: Store) -> Iterator[Version]:
    """All versions that are there, the newest first. Raises UserError as `read_version` does."""
    return read_ahead(lambda number: read_version(store, number), sorted(_numbers(store), reverse=True))


def forget(store: Store, number: int) -> None:
    """Deletes the record of a version. Readers that come later do not see it."""
    store.delete(_name(number))


def read_rows(store: Store, version: Version, columns: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a version, with all columns or some. The rows of an image follow each other; a batch is in memory."""
    for batch in _batches(store, version, columns):
        yield from batch.to_pylist(maps_as_pydicts="strict")


def run_store(store: Store, run: str) -> Store:
    """The root of a run that rows and versions name: a location, or a folder below the data set's root.

    Raises:
        OutsideRoot: if it is a relative name that leads out of the root.
    """
    if "://" in run or run.startswith("/"):
        return Store(run)
    store.path(run)
    return Store(f"{store.url.rstrip('/')}/{run}")


def run_name(store: Store, url: str) -> str:
    """The name that rows and versions give to the root of a run: the inverse of `run_store`."""
    return url.removeprefix(f"{store.url.rstrip('/')}/")


@dataclass(frozen=True)
class Index:
    """An index that was written: its path, size and SHA-256, and its counts of images, of rows by status and of rows by
    run."""

    path: str
    bytes: int
    sha256: str
    images: int
    rows: Counter[str]
    parts: Counter[str]


def write_index(store: Store, base: Version | None, keeps: Callable[[str], bool], added: Iterable[Row]) -> Index:
    """Writes the index of a new version: the rows of `base` whose keys are kept, then the added rows, which have the
    columns of INDEX. An image must not have rows in both, and its rows must follow each other."""
    path = f"{INDEXES}/{uuid.uuid4().hex[:12]}.parquet"
    images, rows, parts, last = 0, Counter[str](), Counter[str](), None
    with store.writing(path) as file:
        stream = HashingStream(file)
        with pq.ParquetWriter(stream, INDEX, compression="zstd") as writer:
            for batch in chain(_kept(store, base, keeps), _batches_of(added)):
                for key in batch["key"].to_pylist():
                    images, last = images + (key != last), key
                rows.update(batch["status"].to_pylist())
                parts.update(batch["run"].to_pylist())
                writer.write_batch(batch)
    return Index(path, stream.tell(), stream.digest.hexdigest(), images, rows, parts)


def publish(store: Store, version: Version) -> Version:
    """Publishes a version and gives the one that now has its number: another driver's, if that came first."""
    created = store.create(_name(version.number), json.dumps(asdict(version), indent=1).encode())
    there = read_version(store, version.number)
    if not created and there.index != version.index:
        store.delete(version.index)
    return there


def _kept(store: Store, base: Version | None, keeps: Callable[[str], bool]) -> Iterator[pa.RecordBatch]:
    for batch in _batches(store, base) if base else ():
        yield batch.filter(pa.array(map(keeps, batch["key"].to_pylist()), pa.bool_()))


def _batches_of(rows: Iterable[Row]) -> Iterator[pa.RecordBatch]:
    iterator = iter(rows)
    while some := list(islice(iterator, BATCH)):
        yield pa.RecordBatch.from_pylist(some, schema=INDEX)


def _batches(store: Store, version: Version, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of the index in its order. A column that an earlier asyrp did not write is null.

    The index is held against the record by its size and its number of rows. If all columns are read, it is held against
    its SHA-256 too, which reads it once more.

    Raises:
        DamagedIndex: if it is missing, or not as it was written.
    """
    schema = INDEX if columns is None else pa.schema([INDEX.field(name) for name in columns])
    try:
        with os_errors(), store.open(version.index) as file:
            _compare(store, version, file, deep=columns is None)
            for batch in _read(store, version, file, schema):
                arrays = [
                    batch[field.name] if field.name in batch.schema.names else pa.nulls(len(batch), field.type)
                    for field in schema
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
    except FileNotFoundError:
        raise _damaged(store, version, "is missing") from None


def _compare(store: Store, version: Version, file: BufferedIOBase, deep: bool) -> None:
    """Hold the bytes of an index against its version: their number and, with `deep`, their SHA-256."""
    size = file.seek(0, os.SEEK_END)
    if version.index_bytes not in (None, size):
        raise _damaged(store, version, f"has {size} bytes and was written with {version.index_bytes}")
    if deep and version.index_sha256 is not None:
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != version.index_sha256:
            raise _damaged(store, version, "is not as it was written")


def _read(store: Store, version: Version, file: BufferedIOBase, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    try:
        parquet = pq.ParquetFile(file)
        if version.rows and parquet.metadata.num_rows != sum(version.rows.values()):
            raise _damaged(store, version, f"has {parquet.metadata.num_rows} rows, and its version says others")
        there = [name for name in schema.names if name in parquet.schema_arrow.names]
        yield from parquet.iter_batches(BATCH, columns=there)
    except pa.ArrowException as error:
        raise _damaged(store, version, f"cannot be read ({type(error).__name__})") from error


def _damaged(store: Store, version: Version, fault: str) -> DamagedIndex:
    return DamagedIndex(f"{version.index}, the index of version {version.number} at {store.url}, {fault}: {RESTORE}")


def _numbers(store: Store) -> list[int]:
    return numbered(store.names(FOLDER), DIGITS)


def _name(number: int) -> str:
    return f"{FOLDER}/{record_name(number, DIGITS)}"
