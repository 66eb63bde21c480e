"""Many samples in one file, a WebDataset tar or a Parquet table: of a data set, or of an attempt at a shard."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run import manifest
from pipeline.run.names import tar_member

COLUMNS = (
    "key",
    *manifest.PIXEL_COLUMNS,
    "status",
    "error_type",
    "width",
    "height",
    "source_width",
    "source_height",
    "output_sha256",
    "source_columns",
)
"""The manifest's columns that a sample keeps. Columns that tell where and when the run was are left out, and so are
metrics."""

AUGMENTED = {"is_augmented": pa.bool_(), "draw": pa.int32(), "run": pa.string()}
"""The columns that a sample of an augmented data set has beside its labels."""

ROWS_PER_GROUP, BYTES_PER_GROUP = 100, 32_000_000
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE_COLUMN = "image"


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file; `extension` with its dot, in lower case."""

    data: bytes
    extension: str


@dataclass(frozen=True)
class Sample:
    """One row of a data set. `edited` is None where the row has no image, `source` also where none is asked for."""

    values: dict[str, Any]  # COLUMNS, and those of an augmented data set
    edited: EncodedImage | None
    source: EncodedImage | None
    row: manifest.Row = field(default_factory=dict)

    @classmethod
    def of(cls, row: manifest.Row, edited: EncodedImage | None, source: EncodedImage | None = None) -> "Sample":
        """A manifest row with its images."""
        return cls({name: row.get(name) for name in COLUMNS}, edited, source, row)

    @property
    def is_augmented(self) -> bool:
        """Whether its image drew the edit that it shows."""
        return self.row.get("draw") is not None

    def augmented(self, run: str) -> "Sample":
        """The sample as an augmented data set has it; `run` is the identity of its run."""
        lineage = {"is_augmented": self.is_augmented, "draw": self.row["draw"], "run": run}
        return replace(self, values={**self.values, **lineage, "labels": self.row["labels"]})

    @property
    def bytes(self) -> int:
        return sum(len(image.data) for image in (self.edited, self.source) if image is not None)


class Place(NamedTuple):
    """Where an image is in its file: what it is called there, and its first byte in a tar or its row in a table."""

    member: str
    offset: int


@dataclass(frozen=True)
class Contents:
    """What samples have beside COLUMNS: the source's image; of an augmented data set the names of its labels."""

    with_source: bool = False
    labels: tuple[str, ...] | None = None


AddSample = Callable[[str, Sample], Place | None]
"""Takes in the next sample under its name; where its edited image is, if it has one."""


@contextmanager
def tar_writer(stream: IO[bytes]) -> Iterator[AddSample]:
    """A tar of NAME.edited.png, NAME.json and NAME.source.jpg. `tar_member` makes NAME of a sample's name."""
    with tarfile.open(fileobj=stream, mode="w") as tar:

        def put(name: str, data: bytes) -> Place:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            blocks = -(-len(data) // tarfile.BLOCKSIZE)
            return Place(name, tar.offset - blocks * tarfile.BLOCKSIZE)

        def put_image(name: str, image: EncodedImage | None) -> Place | None:
            return None if image is None else put(f"{name}{image.extension}", image.data)

        def add(name: str, sample: Sample) -> Place | None:
            name = tar_member(name)
            place = put_image(f"{name}.edited", sample.edited)
            put(f"{name}.json", json.dumps(sample.values).encode())
            put_image(f"{name}.source", sample.source)
            return place

        yield add


@contextmanager
def parquet_writer(stream: IO[bytes], contents: Contents = Contents()) -> Iterator[AddSample]:
    """A Parquet file whose image columns Hugging Face `datasets` opens as images."""
    schema = table_schema({IMAGE_COLUMN: IMAGE} | ({"source": IMAGE} if contents.with_source else {}), contents.labels)
    rows: list[dict[str, Any]] = []
    group: list[int] = []  # the bytes of each row that waits
    written = 0
    with pq.ParquetWriter(stream, schema) as writer:

        def add(name: str, sample: Sample) -> Place | None:
            images = {IMAGE_COLUMN: _cell(name, "", sample.edited), "source": _cell(name, "_source", sample.source)}
            rows.append({**images, **sample.values})
            group.append(sample.bytes)
            cell = images[IMAGE_COLUMN]
            place = Place(cell["path"], written + len(rows) - 1) if cell else None
            if len(group) == ROWS_PER_GROUP or sum(group) >= BYTES_PER_GROUP:
                flush()
            return place

        def flush() -> None:
            nonlocal written
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            written += len(rows)
            rows.clear()
            group.clear()

        yield add
        if rows:
            flush()


def table_schema(images: Mapping[str, pa.DataType], labels: tuple[str, ...] | None) -> pa.Schema:
    """The columns of a table of samples; image columns are marked as such for Hugging Face `datasets`."""
    types = {**images, **{name: manifest.SCHEMA.field(name).type for name in COLUMNS}}
    if labels is not None:
        types |= AUGMENTED
    if labels:
        types["labels"] = pa.struct({name: pa.float64() for name in labels})
    features = {name: _feature(kind) for name, kind in types.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(list(types.items()), metadata=metadata)


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}


def _cell(name: str, suffix: str, image: EncodedImage | None) -> dict[str, Any] | None:
    return None if image is None else {"bytes": image.data, "path": f"{name}{suffix}{image.extension}"}
