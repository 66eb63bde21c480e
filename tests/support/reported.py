"""Gives runs with made-up metrics, to be reported."""

from pathlib import Path

import numpy as np

from pipeline.images.statuses import OK
from pipeline.run.commit import committed
from pipeline.run.manifest import Row
from pipeline.storage.store import Store
from tests.support.runs import make_faces, rewrite_manifest, rows, stand_in_run

HOSTILE = "0007 <img src=x onerror=alert(1)> | `a`.png"
GONE, BROKEN = "0004.png", "0002.png"
LEAST_IDENTITY = 0.5


def measured_run(folder: Path, **changes: object) -> Store:
    """A run of 12 faces and two edits: one source is no image, one has gone since, one has a hostile name; what has
    too little identity is rejected."""
    source = make_faces(folder / "faces", 12)
    (source / BROKEN).write_bytes(b"never an image")
    (source / "0007.png").rename(source / HOSTILE)
    store = stand_in_run(source, folder / "run", preview=3, **changes)
    measure(store)
    (source / GONE).unlink()
    return store


def measured_rows(store: Store) -> list[Row]:
    """The rows of the edits, then those of the reconstructions."""
    return [*rows(store.url).values(), *rows(store.url, "reconstruct").values()]


def measure(store: Store) -> None:
    """Put made-up metrics into the manifests of a run."""
    random = np.random.default_rng(0)
    for stage in ("boost", "reconstruct"):
        for shard in sorted(committed(store, stage)):
            rewrite_manifest(store, stage, shard, lambda row: _measured(row, random))


def _measured(row: Row, random: np.random.Generator) -> Row:
    if row["status"] != OK:
        return row
    row |= {"recon_psnr": random.normal(30, 3), "recon_lpips": random.random()}
    if row["stage"] == "reconstruct":
        return row
    row |= {"identity": random.random(), "edit_lpips": random.random()}
    row |= {"scores": {"smile": random.random()}, "source_scores": {"smile": random.random()}}
    if row["identity"] < LEAST_IDENTITY:
        row |= {"status": "rejected_quality", "error": "too little identity", "output_uri": None, "output_sha256": None}
    return row
