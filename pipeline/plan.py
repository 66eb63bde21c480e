"""The plan: the list of images, frozen before any work and cut into shards.

Part files of SHARDS_PER_PART shards, one Parquet row group per shard, so that a worker reads one shard with
one small read. Writing streams: memory is 8 bytes per output name, whatever the length of the listing.
"""

import hashlib
import io
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asyrp.errors import UserError
from pipeline.sources import SourceImage
from pipeline.storage import Store

SHARDS_PER_PART = 1024
SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
    ]
)
OutputNames = Callable[[str], Iterable[str]]
"""The output names that an image with this key will get."""


@dataclass(frozen=True)
class PlanRow:
    """One image of a shard; `row` counts within the shard."""

    shard: int
    row: int
    key: str
    uri: str
    member: str | None
    size: int | None
    etag: str | None


@dataclass(frozen=True)
class PlanSummary:
    """How much there is to do; `digest` is over the keys, sizes and etags in order."""

    images: int
    shards: int
    shard_size: int
    digest: str


def write_plan(store: Store, images: Iterable[SourceImage], shard_size: int, output_names: OutputNames) -> PlanSummary:
    """Cut a listing into shards and write the plan parts.

    Raises:
        UserError: if there are no images, or two of them would get the same output name.
    """
    digest, names, total = hashlib.sha256(), NameCheck(), 0
    shards = iter(_shards(images, shard_size))
    for part in itertools.count():
        rows = list(itertools.islice(shards, SHARDS_PER_PART))
        if not rows:
            break
        for image in itertools.chain.from_iterable(rows):
            digest.update(_digest_line(image))
            names.add(image.key, output_names(image.key))
            total += 1
        store.write(part_name(part), _part_bytes(rows, first_shard=part * SHARDS_PER_PART))
    if not total:
        raise UserError("the source holds no images: nothing ends in .png, .jpg, .jpeg, .webp, .bmp, .gif or .tif")
    names.check(lambda: (row.key for row in read_plan(store)), output_names)
    return PlanSummary(total, -(-total // shard_size), shard_size, digest.hexdigest())


def _digest_line(image: SourceImage | PlanRow) -> bytes:
    return f"{image.key}\0{image.size}\0{image.etag}\n".encode()


def part_name(part: int) -> str:
    return f"plan/part-{part:05d}.parquet"


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
                "member": [None] * len(images),
                "size": [image.size for image in images],
                "etag": [image.etag for image in images],
            }
            writer.write_table(pa.table(columns, schema=SCHEMA))
    return buffer.getvalue()


def read_shard(store: Store, shard: int) -> list[PlanRow]:
    """The rows of one shard: one row group of one part is read."""
    part, group = divmod(shard, SHARDS_PER_PART)
    with store.fs.open(store.path(part_name(part)), "rb") as file:
        return [PlanRow(**row) for row in pq.ParquetFile(file).read_row_group(group).to_pylist()]


def read_plan(store: Store) -> Iterator[PlanRow]:
    """All rows of the plan, in order, a shard in memory at a time."""
    for part in sorted(store.names("plan")):
        with store.fs.open(store.path(f"plan/{part}"), "rb") as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                yield from (PlanRow(**row) for row in parquet.read_row_group(group).to_pylist())


def is_intact(store: Store, plan: PlanSummary) -> bool:
    """Whether the plan parts still hold the listing that they were written from, and can be read."""
    digest = hashlib.sha256()
    try:
        for row in read_plan(store):
            digest.update(_digest_line(row))
    except (OSError, pa.ArrowException):
        return False
    return digest.hexdigest() == plan.digest


class NameCheck:
    """Finds output names that two images share, with one 64-bit hash per name in memory."""

    def __init__(self) -> None:
        self.hashes = array("Q")

    def add(self, key: str, names: Iterable[str]) -> None:
        for name in names:
            if name.startswith("/") or ".." in name.split("/"):
                raise UserError(f"the output name '{name}' of image '{key}' leaves the output folder; change --name")
            self.hashes.append(_hash(name))

    def check(self, keys: Callable[[], Iterable[str]], output_names: OutputNames) -> None:
        """Raise UserError naming two images with one output name, if there are any."""
        values, counts = np.unique(np.frombuffer(self.hashes, dtype=np.uint64), return_counts=True)
        suspects = set(values[counts > 1].tolist())
        if not suspects:
            return
        first: dict[str, str] = {}
        for key in keys():
            for name in (name for name in output_names(key) if _hash(name) in suspects):
                if name in first:
                    raise UserError(
                        f"images '{first[name]}' and '{key}' would both be written as '{name}': tell them apart "
                        "in the output name, as --name '{key}_{edit}_{strength}' does"
                    )
                first[name] = key


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
