"""The Arrow schema of manifest rows: one per source image and variant, always, with a status."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asyrp.measures.names import METRICS
from pipeline.images.source import SourceImage

VERSION = "5"

_EDIT = (("edit", pa.string()), ("strength", pa.float64()))
_SETTINGS = (
    ("direction_digest", pa.string()),
    ("model_digest", pa.string()),
    ("seed", pa.int64()),
    ("solver", pa.string()),
    ("n_inv", pa.int32()),
    ("refine", pa.int32()),
    ("n_gen", pa.int32()),
    ("t_edit", pa.int32()),
    ("t_boost", pa.int32()),
    ("eta", pa.float64()),
    ("image_size", pa.int32()),
    ("dtype", pa.string()),
)

PIXEL_COLUMNS = tuple(name for name, _ in (*_EDIT, *_SETTINGS))
"""The columns that decide the pixels of an output, given its source image. Samples of data sets keep them all."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        ("source_uri", pa.string()),
        ("source_member", pa.string()),
        ("source_offset", pa.int64()),
        ("source_size", pa.int64()),
        ("source_etag", pa.string()),
        ("source_sha256", pa.string()),
        ("source_columns", pa.string()),
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
        pa.field("stage", pa.string(), nullable=False),
        *_EDIT,
        ("draw", pa.int32()),
        ("labels", pa.map_(pa.string(), pa.float64())),
        *_SETTINGS,
        pa.field("status", pa.string(), nullable=False),
        ("error_type", pa.string()),
        ("error", pa.string()),
        ("attempt", pa.string()),
        ("output_uri", pa.string()),
        ("output_member", pa.string()),
        ("output_offset", pa.int64()),
        ("output_bytes", pa.int64()),
        ("output_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((name, pa.float32()) for name in METRICS),
        ("scores", pa.map_(pa.string(), pa.float32())),
        ("source_scores", pa.map_(pa.string(), pa.float32())),
        ("fetch_ms", pa.float32()),
        ("decode_ms", pa.float32()),
        ("device_ms", pa.float32()),
        ("encode_ms", pa.float32()),
        ("actor", pa.string()),
        ("committed_at", pa.timestamp("ms", tz="UTC")),
    ],
    metadata={"asyrp_manifest_version": VERSION},
)

Row = dict[str, Any]


def to_bytes(rows: Iterable[Row]) -> bytes:
    """A Parquet file of manifest rows; a column that a row leaves out is null."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def from_bytes(data: bytes) -> list[Row]:
    """The rows of a manifest; a column that an earlier version did not write is null."""
    return pq.read_table(io.BytesIO(data), schema=SCHEMA, use_threads=False).to_pylist(maps_as_pydicts="strict")


def table_from_bytes(data: bytes, columns: Sequence[str]) -> pa.Table:
    """Some columns of a manifest, as they lie; one that an earlier version did not write is null."""
    return pq.read_table(io.BytesIO(data), columns=list(columns), schema=SCHEMA, use_threads=False)


def source_of(row: Row) -> SourceImage:
    """The image that a row was made from, to be fetched again."""
    return SourceImage(
        key=row["key"],
        uri=row["source_uri"],
        size=row["source_size"],
        etag=row["source_etag"],
        member=row["source_member"],
        offset=row["source_offset"],
    )
