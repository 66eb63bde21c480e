"""Writes and reads the plan: the list of images, which is frozen before any work and cut into shards.

A part file holds SHARDS_PER_PART shards, with one Parquet row group per shard, so a worker reads a shard with one small
read. The plan is written as a stream: it takes 8 bytes of memory per output name, however long the listing is.

Each time a plan is written it gets a new folder, and run.json names the folder that counts. So neither a second driver
that plans the run at the same time nor one that was killed while planning can change that folder.
"""

import hashlib
import io
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from asyrp.errors import UserError
from pipeline.images.selection import ALL, Selection
from pipeline.images.skipped import Skipped, not_read
from pipeline.images.source import EXTENSIONS, Draw, SourceImage
from pipeline.run.name_check import NameCheck, OutputNames
from pipeline.run.stage import Stage
from pipeline.storage.records import Count, ShardCount, read_as
from pipeline.storage.store import NotAFile, Store, explained, os_errors

RUN = "run.json"
"""The file that defines a run. Planning writes it last."""

FOLDER = "plan"
SHARDS_PER_PART = 1024
LABELS = pa.map_(pa.string(), pa.float64())
SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("columns", pa.string()),
        pa.field("labels", LABELS),
        pa.field("draws", pa.list_(pa.struct({"edit": pa.string(), "strength": pa.float64(), "sets": LABELS}))),
    ]
)


@dataclass(frozen=True)
class PlanRow:
    """One image of a shard; see `pipeline.images.source.SourceImage` for the fields.

    `row` counts within the shard. `columns` is JSON: the columns of the source that are carried along to the output.
    """

    shard: int
    row: int
    key: str
    uri: str
    member: str | None
    offset: int | None
    size: int | None
    etag: str | None
    columns: str | None
    labels: Mapping[str, float] | None = None
    draws: Sequence[Draw] = ()


def source_image(row: PlanRow) -> SourceImage:
    """The image of a plan row, so that it can be planned again."""
    return SourceImage(
        row.key,
        row.uri,
        size=row.size,
        etag=row.etag,
        member=row.member,
        offset=row.offset,
        columns=json.loads(row.columns, parse_constant=str) if row.columns else {},  # earlier plans may hold NaN
        labels=row.labels,
        draws=row.draws,
    )


@dataclass(frozen=True)
class Part:
    """A part file, as the record that names it says it was written. An earlier asyrp recorded no more than the path."""

    path: str
    shards: ShardCount | None = None
    images: Count | None = None
    bytes: Count | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class PlanSummary:
    """The size and identity of a plan.

    `digest` covers keys, sizes, etags and draws in order. `folder` holds the part files, and `parts` says what is in
    each, in order. `census` is the JSON of an augmentation's counts of the source's labels. `skipped` counts the files
    of the source that were not read, by their endings.
    """

    images: Count
    shards: ShardCount
    shard_size: Count
    digest: str
    folder: str = FOLDER
    census: Mapping[str, Any] | None = None
    parts: tuple[Part, ...] = ()
    skipped: Mapping[str, Count] = field(default_factory=dict)

    @property
    def files(self) -> Sequence[Part]:
        """The part files. They are known from the record alone, so that one that is missing is missed."""
        if self.parts:
            return self.parts
        return [Part(part_name(self.folder, number)) for number in range(-(-self.shards // SHARDS_PER_PART))]


class DamagedPlan(UserError):
    """A part file of a plan or of an addition is missing, or not as it was written."""


def stage_sizes(stages: Iterable[Stage], plan: PlanSummary) -> dict[str, tuple[int, int]]:
    """Shards and images of each stage, by name, without what was added to the plan."""
    few = {stage.name: stage.first_images for stage in stages}
    return {
        name: (plan.shards, plan.images) if first is None else (1, min(first, plan.images, plan.shard_size))
        for name, first in few.items()
    }


def write_plan(
    store: Store,
    images: Iterable[SourceImage],
    shard_size: int,
    output_names: OutputNames,
    *,
    as_files: bool = False,
    skipped: Skipped | None = None,
    selection: Selection = ALL,
) -> PlanSummary:
    """Cut a listing into shards and write the part files.

    `as_files` says that output names are those of files. `skipped` counts what the listing passes over,
    and `selection` is what the listing selects by.

    Raises:
        UserError: if there are no images, or output names are refused by NameCheck.
    """
    names = NameCheck(store if as_files else None)
    digest, folder = hashlib.sha256(), f"{FOLDER}/{uuid.uuid4().hex[:12]}"

    def observed() -> Iterator[SourceImage]:
        for image in images:
            digest.update(_digest_line(image))
            names.add(image.key, output_names(image.key))
            yield image

    written = write_parts(store, observed(), shard_size, folder)
    if not written.images:
        raise no_images(skipped, selection)
    names.check(lambda: (row.key for part in written.parts for row in read_part(store, part)), output_names)
    return PlanSummary(
        written.images,
        written.shards,
        shard_size,
        digest.hexdigest(),
        folder,
        parts=tuple(written.parts),
        skipped=dict(skipped.counts) if skipped else {},
    )


def no_images(skipped: Skipped | None, selection: Selection) -> UserError:
    """The error of a source in which there is nothing to edit. It says what was looked for, and what there is."""
    there = f"; not read: {not_read(skipped.counts)}" if skipped and skipped.counts else ""
    why = ""
    if skipped and skipped.all_files:
        why = f": nothing that ends in {', '.join(EXTENSIONS)}"
    elif selection.conditions:
        why = f": nothing in it fits {' and '.join(selection.conditions)}"
    return UserError(f"the source holds no images that are meant{why}{there}")


class WrittenParts(NamedTuple):
    """The part files that were written, and the numbers of shards and images in them."""

    parts: list[Part]
    shards: int
    images: int


def write_parts(
    store: Store, images: Iterable[SourceImage], shard_size: int, folder: str, first_shard: int = 0
) -> WrittenParts:
    """Cut images into shards, number them from `first_shard` on, and write them as part files of a folder."""
    parts: list[Part] = []
    shard = first_shard
    shards = iter(_shards(images, shard_size))
    while rows := list(itertools.islice(shards, SHARDS_PER_PART)):
        path, data = part_name(folder, len(parts)), _part_bytes(rows, shard)
        with explained(f"cannot write {path} to {store.url}"):
            store.write(path, data)
        digest = hashlib.sha256(data).hexdigest()
        parts.append(Part(path, len(rows), sum(map(len, rows)), len(data), digest))
        shard += len(rows)
    return WrittenParts(parts, shard - first_shard, sum(part.images or 0 for part in parts))


def part_name(folder: str, number: int) -> str:
    """The path of a part file. `number` counts the parts of a folder."""
    return f"{folder}/part-{number:05d}.parquet"


def refuse_gone(store: Store, parts: Iterable[Part]) -> None:
    """Raise DamagedPlan if part files that were just written are not there any more, before a record names them."""
    for part in parts:
        if store.size(part.path) != part.bytes:
            raise DamagedPlan(f"{part.path} was deleted at {store.url} before it counted: give the command again")


def _digest_line(image: SourceImage | PlanRow) -> bytes:
    drawn = json.dumps([asdict(draw) for draw in image.draws]) if image.draws else ""
    return f"{image.key}\0{image.size}\0{image.etag}{drawn}\n".encode()


def _shards(images: Iterable[SourceImage], shard_size: int) -> Iterator[tuple[SourceImage, ...]]:
    iterator = iter(images)
    while shard := tuple(itertools.islice(iterator, shard_size)):
        yield shard


def _columns_json(image: SourceImage) -> str | None:
    return json.dumps(image.columns, default=str, allow_nan=False) if image.columns else None


def _part_bytes(shards: list[tuple[SourceImage, ...]], first_shard: int) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd") as writer:
        for shard, images in enumerate(shards, first_shard):
            columns = {
                "shard": [shard] * len(images),
                "row": list(range(len(images))),
                "key": [image.key for image in images],
                "uri": [image.uri for image in images],
                "member": [image.member for image in images],
                "offset": [image.offset for image in images],
                "size": [image.size for image in images],
                "etag": [image.etag for image in images],
                "columns": [_columns_json(image) for image in images],
                "labels": [image.labels for image in images],
                "draws": [[asdict(draw) for draw in image.draws] or None for image in images],
            }
            writer.write_table(pa.table(columns, schema=SCHEMA))
    return buffer.getvalue()


@dataclass(frozen=True)
class _Planned:
    """The part of run.json that this module reads."""

    plan: PlanSummary


def current_plan(store: Store) -> PlanSummary:
    """The plan that run.json names. Raises FileNotFoundError if there is no run.json."""
    return read_as(store, RUN, _Planned).plan


def read_planned(store: Store, plan: PlanSummary, shard: int) -> list[PlanRow]:
    """The rows of one shard of the plan, from one row group. Raises DamagedPlan as `read_group` does."""
    part, group = divmod(shard, SHARDS_PER_PART)
    return read_group(store, plan.files[part], group, shard)


def read_group(store: Store, part: Part, group: int, shard: int) -> list[PlanRow]:
    """The rows of a shard, from one row group of a part file.

    The file is held against the record by its size and its numbers of shards and images. Its SHA-256 is left to
    `read_part`, because it would take the whole file.

    Raises:
        DamagedPlan: if the file is missing, not as it was written, or does not have the shard there.
    """
    with os_errors(), _explained(store, part), store.open(part.path) as file:
        parquet = pq.ParquetFile(file)
        size = file.seek(0, os.SEEK_END)
        _compare(store, part, size, parquet)
        rows = list(_rows(parquet, group)) if group < parquet.num_row_groups else []
    if not rows or [(row.shard, row.row) for row in rows] != [(shard, number) for number in range(len(rows))]:
        raise _damaged(store, part, f"does not have shard {shard} where it was written")
    return rows


def read_part(store: Store, part: Part) -> Iterator[PlanRow]:
    """All rows of a part file. The file is in memory, and held against the record by its SHA-256 too.

    Raises:
        DamagedPlan: if it is missing, or not as it was written.
    """
    with _explained(store, part):
        data = store.read(part.path)
    with _explained(store, part, in_memory=True):
        if part.sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise _damaged(store, part, "is not as it was written")
        parquet = pq.ParquetFile(io.BytesIO(data))
        _compare(store, part, len(data), parquet)
    for group in range(parquet.num_row_groups):
        with _explained(store, part, in_memory=True):
            rows = list(_rows(parquet, group))
        yield from rows


def _compare(store: Store, part: Part, size: int, parquet: pq.ParquetFile) -> None:
    found = {"bytes": size, "shards": parquet.num_row_groups, "images": parquet.metadata.num_rows}
    for name, count in found.items():
        if (wanted := getattr(part, name)) not in (None, count):
            raise _damaged(store, part, f"has {count} {name} and was written with {wanted}")


@contextmanager
def _explained(store: Store, part: Part, in_memory: bool = False) -> Iterator[None]:
    """Turn what a part file that is missing or damaged raises into DamagedPlan. Of a file that is not in memory, an
    OSError may also come from a store that does not answer, so it is raised as it is."""
    try:
        yield
    except FileNotFoundError:
        raise _damaged(store, part, "is missing") from None
    except NotAFile:
        raise _damaged(store, part, "is no regular file") from None
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and not in_memory:
            raise
        raise _damaged(store, part, f"cannot be read ({type(error).__name__})") from error


def _damaged(store: Store, part: Part, fault: str) -> DamagedPlan:
    return DamagedPlan(f"{part.path} at {store.url} {fault}: bring it back from a copy, or make the run anew elsewhere")


def _rows(parquet: pq.ParquetFile, group: int) -> Iterator[PlanRow]:
    for row in parquet.read_row_group(group).to_pylist(maps_as_pydicts="strict"):
        yield PlanRow(**{**row, "draws": tuple(Draw(**draw) for draw in row.get("draws") or ())})


def read_plan(store: Store) -> Iterator[PlanRow]:
    """All rows of the plan in order, with one part in memory at a time.

    Raises:
        DamagedPlan: if a part is missing or not as it was written, or the parts do not add up to the plan.
    """
    plan = current_plan(store)
    return counted_rows(store, plan.files, plan.shards, plan.images, RUN)


def counted_rows(store: Store, parts: Iterable[Part], shards: int, images: int, record: str) -> Iterator[PlanRow]:
    """All rows of some parts. At their end they are held against the numbers of shards and images that `record` says.

    Raises:
        DamagedPlan: as `read_part` does; also if the numbers are others.
    """
    found, last, changes = 0, None, 0
    for part in parts:
        for row in read_part(store, part):
            found, changes, last = found + 1, changes + (row.shard != last), row.shard
            yield row
    if (changes, found) != (shards, images):
        raise DamagedPlan(
            f"{record} at {store.url} says {images} images in {shards} shards, and its parts have {found} in {changes}:"
            " bring the record and its parts back from a copy"
        )


def is_intact(store: Store, plan: PlanSummary) -> bool:
    """Whether the part files can be read and still hold the listing from which they were written."""
    digest = hashlib.sha256()
    try:
        for row in counted_rows(store, plan.files, plan.shards, plan.images, RUN):
            digest.update(_digest_line(row))
    except DamagedPlan:
        return False
    return digest.hexdigest() == plan.digest
