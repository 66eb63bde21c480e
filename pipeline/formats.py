"""The formats of a data set: how each writes one shard of it.

Samples are named by their number in the split. A key would not do: webdataset cuts names at their first dot, and
Hugging Face takes a "test" in any name for a split.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import manifest
from pipeline.parallel import THREADS
from pipeline.samples import COLUMNS, EncodedImage, Sample
from pipeline.storage import Store

Add = Callable[[int, Sample], None]
"""Takes in the next sample of an open shard, under its number."""

ROWS_PER_GROUP, BYTES_PER_GROUP = 100, 32_000_000
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Format:
    """A format by what its shards are called (a format string of split and shard), and how one is written.

    `open_shard(store, name, with_source)` writes a shard that is there as a whole after the block, or not at all.
    """

    shard: str
    files: str  # a glob over the files of a split
    open_shard: Callable[[Store, str, bool], AbstractContextManager[Add]]
    max_samples: int


@contextmanager
def webdataset_shard(store: Store, name: str, with_source: bool) -> Iterator[Add]:  # noqa: ARG001
    """A tar of NUMBER.edited.png, NUMBER.json and NUMBER.source.jpg."""
    from webdataset import TarWriter  # loads torch

    with store.writing(name) as stream, TarWriter(stream, encoder=False, mtime=0) as tar:

        def add(number: int, sample: Sample) -> None:
            images = {"edited": sample.edited, "source": sample.source}
            members = {f"{part}{image.extension}": image.data for part, image in images.items() if image is not None}
            tar.write({"__key__": _name(number), "json": json.dumps(sample.values).encode(), **members})

        yield add


@contextmanager
def parquet_shard(store: Store, name: str, with_source: bool) -> Iterator[Add]:
    """A Parquet file whose image columns Hugging Face `datasets` opens as images."""
    schema = table_schema({"image": IMAGE} | ({"source": IMAGE} if with_source else {}))
    rows: list[dict[str, Any]] = []
    group: list[int] = []  # the bytes of each row that waits
    with store.writing(name) as stream, pq.ParquetWriter(stream, schema) as writer:

        def add(number: int, sample: Sample) -> None:
            images = {"image": _cell(number, "", sample.edited), "source": _cell(number, "_source", sample.source)}
            rows.append({**images, **sample.values})
            group.append(sample.bytes)
            if len(group) == ROWS_PER_GROUP or sum(group) >= BYTES_PER_GROUP:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()
            group.clear()

        yield add
        if rows:
            flush()


@contextmanager
def imagefolder_shard(store: Store, name: str, with_source: bool) -> Iterator[Add]:
    """A folder of images, each source once, and a metadata.parquet that names them: written last."""
    paths = {"file_name": pa.string()} | ({"source_file_name": pa.string()} if with_source else {})
    schema = table_schema(paths)
    rows: list[dict[str, Any]] = []
    written: list[Future[None]] = []
    store.delete(name)
    with ThreadPoolExecutor(THREADS) as pool:

        def put(number: int, suffix: str, image: EncodedImage | None) -> str | None:
            if image is None:
                return None
            file = f"{_name(number)}{suffix}{image.extension}"
            written.append(pool.submit(store.write, f"{name}/{file}", image.data))
            return file

        def add(number: int, sample: Sample) -> None:
            before = rows[-1] if rows else {}
            if sample.source is not None and before.get("key") == sample.values["key"] and before["source_file_name"]:
                source = before["source_file_name"]
            else:
                source = put(number, "_source", sample.source)
            rows.append({"file_name": put(number, "", sample.edited), "source_file_name": source, **sample.values})

        yield add
        for future in written:
            future.result()
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), table)
    store.write(f"{name}/metadata.parquet", table.getvalue())


FORMATS: Mapping[str, Format] = {
    "webdataset": Format("{split}-{shard:06d}.tar", "{split}-*.tar", webdataset_shard, 100_000),
    "imagefolder": Format("{split}/{shard:05d}", "{split}/**", imagefolder_shard, 2_000),
    "parquet": Format("data/{split}-{shard:05d}.parquet", "data/{split}-*.parquet", parquet_shard, 100_000),
}


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


def _cell(number: int, suffix: str, image: EncodedImage | None) -> dict[str, Any] | None:
    return None if image is None else {"bytes": image.data, "path": f"{_name(number)}{suffix}{image.extension}"}


def _name(number: int) -> str:
    return f"{number:08d}"
