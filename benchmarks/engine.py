"""What the engine costs beside the net, as ratios and rates of one run on one machine.

python benchmarks/engine.py overhead    # the worker against the bare sampling loop, same batch
python benchmarks/engine.py reader      # fetch + decode + resize of 1024 px JPEG to 256 px, one core
python benchmarks/engine.py rerun       # a finished run of 10,000 shards, called again
python benchmarks/engine.py plan        # a plan of 1,000,000 images
"""

import argparse
import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asyrp import registry
from jobs.record import open_run
from jobs.resolve import Job, resolve
from jobs.run import run
from jobs.spec import JobSpec
from pipeline.commit import Commit
from pipeline.fetch import fetch
from pipeline.images import decode
from pipeline.plan import write_plan
from pipeline.sources import SourceImage, list_images
from pipeline.stages import Method
from pipeline.storage import Store
from pipeline.worker import Worker, WorkerOptions

SAMPLES = registry.BUNDLED / "avatars" / "samples"


def job_at(root: Path, **changes: object) -> Job:
    values = {"source": str(SAMPLES), "output": str(root), "edits": ["glasses=1"], "preview": 0, **changes}
    return resolve(JobSpec.model_validate(values))


def overhead(root: Path, batch_size: int = 8) -> None:
    """All 64 samples, 40 + 40 steps: the bare loop in this thread, then the worker with its threads and files."""
    job = job_at(root, shard_size=16)
    method = Method(job.settings)
    images = [decode(fetch(image), 32, "crop").pixels for image in list_images(job.spec.source)]
    pixels, keys = torch.from_numpy(np.stack(images))[:, None], [str(i) for i in range(len(images))]
    with torch.inference_mode():
        method.fused(pixels[:batch_size], keys[:batch_size])
        start = time.perf_counter()
        for i in range(0, len(keys), batch_size):
            method.fused(pixels[i : i + batch_size], keys[i : i + batch_size])
        bare = time.perf_counter() - start
    plan = open_run(Store(str(root)), job)
    worker = Worker(str(root), "bench", lambda: {"fused": method.fused}, job.image_format, WorkerOptions(batch_size))
    start = time.perf_counter()
    for shard in range(plan.shards):
        worker.run(job.stages[0], shard)
    engine = time.perf_counter() - start
    seconds = worker.close()["seconds"]
    waits = seconds["wait_for_reader"] + seconds["wait_for_writer"]
    print(f"bare loop {len(keys) / bare:.3f} img/s, worker {len(keys) / engine:.3f} img/s: "
          f"overhead {100 * (engine / bare - 1):.1f} %")  # fmt: skip
    print(f"device busy {100 * seconds['device'] / (seconds['device'] + waits):.1f} % of the worker's time")


def reader(root: Path, count: int = 100) -> None:
    """One thread, from the local disk."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).resize((1024, 1024))
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=90)
    (root / "x.jpg").write_bytes(buffer.getvalue())
    [image] = list_images(str(root))
    start = time.perf_counter()
    for _ in range(count):
        decode(fetch(image), 256, "crop")
    print(f"{count / (time.perf_counter() - start):.0f} img/s on one core")


def rerun(root: Path, shards: int = 10_000) -> None:
    """Commits as a finished run leaves them, then the same run again."""
    source = root / "source"
    source.mkdir()
    for index in range(shards):
        (source / f"{index:05d}.png").write_bytes(b"x")
    job = job_at(root / "out", source=str(source), shard_size=1)
    store = Store(job.spec.output)
    plan = open_run(store, job)
    (root / "out" / "commit" / "boost").mkdir(parents=True)
    for shard in range(plan.shards):
        record = Commit("boost", shard, "a", 1, {"ok": 1}, "manifest/x.parquet", [], None)
        path = root / "out" / "commit" / "boost" / f"{shard:06d}.json"
        path.write_text(json.dumps({**vars(record)}))
    start = time.perf_counter()
    result = run(job.spec)
    assert result.outcome is None
    print(f"rerun of a finished run of {shards:,} shards: {time.perf_counter() - start:.2f} s, nothing started")


def plan(root: Path, count: int = 1_000_000) -> None:
    """The listing is made up, so that this measures the plan and not a disk."""

    def listing() -> Iterator[SourceImage]:
        for index in range(count):
            key = f"{index // 1000:04d}/{index:08d}.jpg"
            yield SourceImage(key, f"s3://bucket/images/{key}", 100_000, f"{index:032x}")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    summary = write_plan(Store(str(root)), listing(), 64, lambda key: [f"{key}_glasses_1.png"])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"plan of {summary.images:,} images, {summary.shards:,} shards: {time.perf_counter() - start:.1f} s, "
          f"{grown:.0f} MiB more memory")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["overhead", "reader", "rerun", "plan"])
    measure = getattr(sys.modules[__name__], parser.parse_args().what)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))


if __name__ == "__main__":
    main()
