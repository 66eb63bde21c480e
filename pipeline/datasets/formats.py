"""The formats of a data set. Each writes one shard at a time.

Samples are named by their number in the split, not by their key: webdataset cuts names at their first dot, and Hugging
Face takes a "test" in any name for a split.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run.containers import Contents, EncodedImage, Sample, parquet_writer, table_schema, tar_writer
from pipeline.storage.read_ahead import THREADS
from pipeline.storage.store import Store

Add = Callable[[str, Sample], Any]
"""Adds a sample to an open shard, under a name."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of shards. `shard` is the name of a shard, `files` a glob over the files of a split; both are format
    strings.

    `open_shard(store, name, contents)` writes a shard: it is there as a whole after the block, or not at all.
    """

    shard: str
    files: str
    open_shard: Callable[[Store, str, Contents], AbstractContextManager[Add]]
    max_samples: int


@contextmanager
def webdataset_shard(store: Store, name: str, contents: Contents) -> Iterator[Add]:  # noqa: ARG001
    with store.writing(name) as stream, tar_writer(stream) as add:
        yield add


@contextmanager
def parquet_shard(store: Store, name: str, contents: Contents) -> Iterator[Add]:
    with store.writing(name) as stream, parquet_writer(stream, contents) as add:
        yield add


@contextmanager
def imagefolder_shard(store: Store, name: str, contents: Contents) -> Iterator[Add]:
    """A folder of images that has each source once. The file metadata.parquet, written last, names the images."""
    paths = {"file_name": pa.string()} | ({"source_file_name": pa.string()} if contents.with_source else {})
    schema = table_schema(paths, contents.labels)
    rows: list[dict[str, Any]] = []
    written: list[Future[None]] = []
    store.delete(name)
    with ThreadPoolExecutor(THREADS) as pool:

        def put(stem: str, image: EncodedImage | None) -> str | None:
            if image is None:
                return None
            file = f"{stem}{image.extension}"
            written.append(pool.submit(store.write, f"{name}/{file}", image.data))
            return file

        def add(stem: str, sample: Sample) -> None:
            before = rows[-1] if rows else {}
            if sample.source is not None and before.get("key") == sample.values["key"] and before["source_file_name"]:
                source = before["source_file_name"]
            else:
                source = put(f"{stem}_source", sample.source)
            rows.append({"file_name": put(stem, sample.edited), "source_file_name": source, **sample.values})

        yield add
        for future in written:
            future.result()
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), table)
    store.write(f"{name}/metadata.parquet", table.getvalue())


FORMATS: Mapping[str, Format] = {
    "webdataset": Format(
        shard="{split}-{shard:06d}.tar",
        files="{split}-*.tar",
        open_shard=webdataset_shard,
        max_samples=100_000,
    ),
    "imagefolder": Format(
        shard="{split}/{shard:05d}",
        files="{split}/**",
        open_shard=imagefolder_shard,
        max_samples=2_000,
    ),
    "parquet": Format(
        shard="data/{split}-{shard:05d}.parquet",
        files="data/{split}-*.parquet",
        open_shard=parquet_shard,
        max_samples=100_000,
    ),
}
