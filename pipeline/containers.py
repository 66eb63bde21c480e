"""Many samples in one file, a WebDataset tar or a Parquet table: of a data set, or of an attempt at a shard."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import manifest

COLUMNS = (
    "key",
    "edit",
    "strength",
    "status",
    "error_type",
    "width",
    "height",
    "source_width",
    "source_height",
    "image_size",
    "t_edit",
    "t_boost",
    "eta",
    "seed",
    "n_inv",
    "n_gen",
    "dtype",
    "direction_digest",
    "model_digest",
    "output_sha256",
    "source_columns",
)
"""The manifest's columns that a data set keeps: those that say nothing of where and when the run was."""

ROWS_PER_GROUP, BYTES_PER_GROUP = 100, 32_000_000
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE_COLUMN = "image"
EDITED = "edited"
"""Of a member's name in a tar: what stands between the name of the sample and the extension of the edited image."""


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file; `extension` with its dot, in lower case."""

    data: bytes
    extension: str


@dataclass(frozen=True)
class Sample:
    """One row of a data set. `edited` is None where the row has no image, `source` also where none is asked for."""

    values: dict[str, Any]  # COLUMNS
    edited: EncodedImage | None
    source: EncodedImage | None

    @classmethod
    def of(cls, row: manifest.Row, edited: EncodedImage | None, source: EncodedImage | None = None) -> "Sample":
        """A manifest row with its images."""
        return cls({name: row.get(name) for name in COLUMNS}, edited, source)

    @property
    def bytes(self) -> int:
        return sum(len(image.data) for image in (self.edited, self.source) if image is not None)


AddSample = Callable[[str, Sample], int]
"""Takes in the next sample under its name; where its edited image is then: the first byte in a tar, the row in a
table."""


@contextmanager
def tar_writer(stream: IO[bytes]) -> Iterator[AddSample]:
    """A tar of NAME.edited.png, NAME.json and NAME.source.jpg. The last part of a name has no dot."""
    with tarfile.open(fileobj=stream, mode="w") as tar:

        def put(name: str, data: bytes) -> int:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            blocks = -(-len(data) // tarfile.BLOCKSIZE)
            return tar.offset - blocks * tarfile.BLOCKSIZE

        def add(name: str, sample: Sample) -> int:
            place = tar.offset
            if sample.edited is not None:
                place = put(f"{name}.{EDITED}{sample.edited.extension}", sample.edited.data)
            put(f"{name}.json", json.dumps(sample.values).encode())
            if sample.source is not None:
                put(f"{name}.source{sample.source.extension}", sample.source.data)
            return place

        yield add


@contextmanager
def parquet_writer(stream: IO[bytes], with_source: bool) -> Iterator[AddSample]:
    """A Parquet file whose image columns Hugging Face `datasets` opens as images."""
    schema = table_schema({IMAGE_COLUMN: IMAGE} | ({"source": IMAGE} if with_source else {}))
    rows: list[dict[str, Any]] = []
    group: list[int] = []  # the bytes of each row that waits
    written = 0
    with pq.ParquetWriter(stream, schema) as writer:

        def add(name: str, sample: Sample) -> int:
            images = {IMAGE_COLUMN: _cell(name, "", sample.edited), "source": _cell(name, "_source", sample.source)}
            rows.append({**images, **sample.values})
            group.append(sample.bytes)
            place = written + len(rows) - 1
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


def table_schema(images: Mapping[str, pa.DataType]) -> pa.Schema:
    """The columns of a table of samples; image columns are marked as such for Hugging Face `datasets`."""
    types = {**images, **{name: manifest.SCHEMA.field(name).type for name in COLUMNS}}
    features = {name: _feature(kind) for name, kind in types.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(list(types.items()), metadata=metadata)


def _feature(kind: pa.DataType) -> dict[str, str]:
    if kind == IMAGE:
        return {"_type": "Image"}
    return {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}


def _cell(name: str, suffix: str, image: EncodedImage | None) -> dict[str, Any] | None:
    return None if image is None else {"bytes": image.data, "path": f"{name}{suffix}{image.extension}"}
