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
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asyrp.errors import UserError
from pipeline.images.skipped import Skipped, not_read
from pipeline.images.source import EXTENSIONS, Draw, SourceImage
from pipeline.run.stage import Stage
from pipeline.storage.store import Store

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
OutputNames = Callable[[str], Iterable[str]]
"""Gives the output names of the image with this key."""


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
        columns=json.loads(row.columns) if row.columns else {},
        labels=row.labels,
        draws=row.draws,
    )


@dataclass(frozen=True)
class PlanSummary:
    """The size and identity of a plan.

    `digest` covers keys, sizes, etags and draws in order. `folder` holds the part files. `census` is the JSON of an
    augmentation's counts of the source's labels. `skipped` counts the files of the source that were not read, by their
    endings.
    """

    images: int
    shards: int
    shard_size: int
    digest: str
    folder: str = FOLDER
    census: Mapping[str, Any] | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)


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
    skipped: Skipped | None = None,
) -> PlanSummary:
    """Cut a listing into shards and write the part files. `skipped` counts what the listing passes over.

    Raises:
        UserError: if there are no images, an output name leaves the output folder, or two images would get the same
            output name.
    """
    digest, names, folder = hashlib.sha256(), NameCheck(), f"{FOLDER}/{uuid.uuid4().hex[:12]}"

    def observed() -> Iterator[SourceImage]:
        for image in images:
            digest.update(_digest_line(image))
            names.add(image.key, output_names(image.key))
            yield image

    written = write_parts(store, observed(), shard_size, folder)
    if not written.images:
        raise no_images(skipped)
    names.check(lambda: (row.key for part in written.parts for row in read_part(store, part)), output_names)
    counts = dict(skipped.counts) if skipped else {}
    return PlanSummary(written.images, written.shards, shard_size, digest.hexdigest(), folder, skipped=counts)


def no_images(skipped: Skipped | None) -> UserError:
    """The error of a source in which there is nothing to edit. It says what there is."""
    there = f"; not read: {not_read(skipped.counts)}" if skipped and skipped.counts else ""
    return UserError(f"the source holds no images that are meant: nothing that ends in {', '.join(EXTENSIONS)}{there}")


class WrittenParts(NamedTuple):
    """The paths of the part files that were written, and the numbers of shards and images in them."""

    parts: list[str]
    shards: int
    images: int


def write_parts(
    store: Store, images: Iterable[SourceImage], shard_size: int, folder: str, first_shard: int = 0
) -> WrittenParts:
    """Cut images into shards, number them from `first_shard` on, and write them as part files of a folder."""
    parts: list[str] = []
    shard, total = first_shard, 0
    shards = iter(_shards(images, shard_size))
    while rows := list(itertools.islice(shards, SHARDS_PER_PART)):
        parts.append(f"{folder}/part-{len(parts):05d}.parquet")
        store.write(parts[-1], _part_bytes(rows, shard))
        shard += len(rows)
        total += sum(map(len, rows))
    return WrittenParts(parts, shard - first_shard, total)


def _digest_line(image: SourceImage | PlanRow) -> bytes:
    drawn = json.dumps([asdict(draw) for draw in image.draws]) if image.draws else ""
    return f"{image.key}\0{image.size}\0{image.etag}{drawn}\n".encode()


def _shards(images: Iterable[SourceImage], shard_size: int) -> Iterator[tuple[SourceImage, ...]]:
    iterator = iter(images)
    while shard := tuple(itertools.islice(iterator, shard_size)):
        yield shard


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
                "columns": [json.dumps(image.columns, default=str) if image.columns else None for image in images],
                "labels": [image.labels for image in images],
                "draws": [[asdict(draw) for draw in image.draws] or None for image in images],
            }
            writer.write_table(pa.table(columns, schema=SCHEMA))
    return buffer.getvalue()


def current_plan(store: Store) -> PlanSummary:
    """The plan that run.json names. Raises FileNotFoundError if there is no run.json."""
    return PlanSummary(**store.read_json(RUN)["plan"])


def read_planned(store: Store, shard: int) -> list[PlanRow]:
    """The rows of one shard of the plan, from one row group. Raises FileNotFoundError if the plan lacks the shard."""
    part, group = divmod(shard, SHARDS_PER_PART)
    return read_group(store, f"{current_plan(store).folder}/part-{part:05d}.parquet", group)


def read_group(store: Store, part: str, group: int) -> list[PlanRow]:
    """The rows of one row group of a part file. Raises FileNotFoundError if there is no such file or group."""
    with store.fs.open(store.path(part), "rb") as file:
        parquet = pq.ParquetFile(file)
        if group >= parquet.num_row_groups:
            raise FileNotFoundError(f"{part} has no row group {group}")
        return list(_rows(parquet, group))


def read_part(store: Store, part: str) -> Iterator[PlanRow]:
    """All rows of a part file, with one shard in memory at a time."""
    with store.fs.open(store.path(part), "rb") as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            yield from _rows(parquet, group)


def _rows(parquet: pq.ParquetFile, group: int) -> Iterator[PlanRow]:
    for row in parquet.read_row_group(group).to_pylist(maps_as_pydicts="strict"):
        yield PlanRow(**{**row, "draws": tuple(Draw(**draw) for draw in row.get("draws") or ())})


def read_plan(store: Store) -> Iterator[PlanRow]:
    """All rows of the plan in order, with one shard in memory at a time."""
    folder = current_plan(store).folder
    for part in sorted(store.names(folder)):
        yield from read_part(store, f"{folder}/{part}")


def is_intact(store: Store, plan: PlanSummary) -> bool:
    """Whether the part files can be read and still hold the listing from which they were written."""
    digest = hashlib.sha256()
    try:
        for row in read_plan(store):
            digest.update(_digest_line(row))
    except (OSError, pa.ArrowException):
        return False
    return digest.hexdigest() == plan.digest


class NameCheck:
    """Finds output names that two images share. It keeps one 64-bit hash per name in memory."""

    def __init__(self) -> None:
        self.hashes = array("Q")

    def add(self, key: str, names: Iterable[str]) -> None:
        """Add the output names of an image. Raises UserError if one leaves the output folder."""
        for name in names:
            if name.startswith("/") or ".." in name.split("/"):
                raise UserError(f"the output name '{name}' of image '{key}' leaves the output folder; change --name")
            self.hashes.append(hash64(name))

    def check(self, keys: Callable[[], Iterable[str]], output_names: OutputNames) -> None:
        """Raise UserError if two images have the same output name. The message names both.

        `keys` lists the keys of all images again.
        """
        values, counts = np.unique(np.frombuffer(self.hashes, dtype=np.uint64), return_counts=True)
        suspects = set(values[counts > 1].tolist())
        if not suspects:
            return
        first: dict[str, str] = {}
        for key in keys():
            for name in (name for name in output_names(key) if hash64(name) in suspects):
                if name in first:
                    raise UserError(
                        f"images '{first[name]}' and '{key}' would both be written as '{name}': tell them apart "
                        "in the output name, as --name '{key}_{edit}_{strength}' does"
                    )
                first[name] = key


def hash64(name: str) -> int:
    """A 64-bit BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
