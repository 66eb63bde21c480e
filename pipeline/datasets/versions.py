"""The versions of a data set that grows: which rows of which runs make up each, on storage alone.

A version is an index, a Parquet file of manifest rows with the run that each is of, and a small record that names it.
The record is created if absent under the next number, last of all: a reader takes the highest number and sees one
version or the other, never something between, and of two drivers only one makes a version. Neither is changed again.
"""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from asyrp.errors import UserError
from pipeline.run import manifest
from pipeline.run.manifest import Row
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

FOLDER = "versions"
INDEXES = f"{FOLDER}/index"
FORMAT = 1
BATCH = 10_000
INDEX = manifest.SCHEMA.append(pa.field("run", pa.string(), nullable=False)).append(
    pa.field("recipe", pa.string(), nullable=False)
)
"""A manifest row, the root of its run (relative to the data set's where it is below it), and what its run did with an
image, as a digest."""


@dataclass(frozen=True)
class Version:
    """What a version was made from and how much is in it.

    `run` is None where images were only dropped; `changes` are images by what became of them since the version before.
    Rows are counted by status in `rows`, by run in `parts`, the oldest first.
    """

    number: int
    tick: str
    run: str | None
    spec_digest: str
    created_at: str
    index: str
    images: int
    rows: dict[str, int]
    parts: dict[str, int]
    changes: dict[str, int]
    format: int = FORMAT

    @property
    def last_run(self) -> str | None:
        """The run that was the last to add what is in it; None if nothing is."""
        return list(self.parts)[-1] if self.parts else None


def latest(store: Store) -> Version | None:
    """The newest version of the data set at `store`; None if there is none yet."""
    numbers = _numbers(store)
    return read_version(store, max(numbers)) if numbers else None


def read_version(store: Store, number: int) -> Version:
    """A version by its number.

    Raises:
        UserError: if there is none, or a later version of asyrp wrote it.
    """
    try:
        record = store.read_json(_name(number))
    except FileNotFoundError:
        raise UserError(f"the data set at {store.url} has no version {number}") from None
    if record["format"] != FORMAT:
        raise UserError(f"version {number} at {store.url} has format {record['format']}, this asyrp knows {FORMAT}")
    return Version(**record)


def read_versions(store: Store) -> Iterator[Version]:
    """All versions that are there, the newest first. Raises UserError as `read_version` does."""
    return read_ahead(lambda number: read_version(store, number), sorted(_numbers(store), reverse=True))


def forget(store: Store, number: int) -> None:
    """Delete the record of a version: it is not there any more for who comes next."""
    store.delete(_name(number))


def read_rows(store: Store, version: Version, columns: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a version, those of an image side by side, in batches in memory; all columns or some."""
    for batch in _batches(store, version, columns):
        yield from batch.to_pylist(maps_as_pydicts="strict")


def run_store(store: Store, run: str) -> Store:
    """The root of a run as rows and versions name it."""
    is_place = "://" in run or run.startswith("/")
    return Store(run if is_place else f"{store.url.rstrip('/')}/{run}")


def run_name(store: Store, url: str) -> str:
    """How rows and versions name the root of a run: the inverse of `run_store`."""
    return url.removeprefix(f"{store.url.rstrip('/')}/")


@dataclass(frozen=True)
class Index:
    """An index that was written, and what is in it: images, rows by status, rows by run."""

    path: str
    images: int
    rows: Counter[str]
    parts: Counter[str]


def write_index(store: Store, base: Version | None, keeps: Callable[[str], bool], added: Iterable[Row]) -> Index:
    """Write the index of a new version: the rows of `base` whose keys are kept, then those that are added, which have
    the columns of INDEX. No image may have rows in both, and those of an image follow each other."""
    path = f"{INDEXES}/{uuid.uuid4().hex[:12]}.parquet"
    images, rows, parts, last = 0, Counter[str](), Counter[str](), None
    with store.writing(path) as stream, pq.ParquetWriter(stream, INDEX, compression="zstd") as writer:
        for batch in chain(_kept(store, base, keeps), _batches_of(added)):
            for key in batch["key"].to_pylist():
                images, last = images + (key != last), key
            rows.update(batch["status"].to_pylist())
            parts.update(batch["run"].to_pylist())
            writer.write_batch(batch)
    return Index(path, images, rows, parts)


def publish(store: Store, version: Version) -> Version:
    """Make a version the newest one; the version that has its number, which is another's where that came first."""
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
    """The index in its order. A column that an earlier asyrp did not write is null."""
    schema = INDEX if columns is None else pa.schema([INDEX.field(name) for name in columns])
    with store.fs.open(store.path(version.index), "rb") as file:
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(BATCH, columns=schema.names):
            arrays = [
                batch[field.name] if field.name in batch.schema.names else pa.nulls(len(batch), field.type)
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _numbers(store: Store) -> list[int]:
    return [int(name.removesuffix(".json")) for name in store.names(FOLDER)]


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"
