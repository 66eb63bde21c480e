"""Measures the cost of the engine beside the net, and how that cost grows, on one machine.

python -m benchmarks.scale plan        # a plan of 1,000,000 images; --images 10_000_000 for more
python -m benchmarks.scale rerun       # a finished run of 10,000 local shards: read its state, and call it again
python -m benchmarks.scale calls       # the same on an S3 server on loopback: counts the calls to S3
python -m benchmarks.scale actors      # 1 and 8 actors with a net that takes a fixed time
python -m benchmarks.scale reader      # fetch + decode + resize of 1024 px JPEG to 256 px, one core
python -m benchmarks.scale overhead    # the worker against the bare sampling loop, same batch
"""

import argparse
import io
import json
import logging
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import s3fs
import torch
from moto.server import ThreadedMotoServer
from PIL import Image

from asyrp.models.folder import BUNDLED
from jobs.runs.record import open_run
from jobs.runs.resolve import ResolvedRun, resolve
from jobs.runs.run import run
from jobs.runs.session import read_state
from jobs.spec.run import RunSpec
from pipeline.engine.actors import EngineOptions
from pipeline.engine.cluster import ray_session
from pipeline.engine.driver import Engine, pending_units
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.images.codec import decode
from pipeline.images.fetch import fetch
from pipeline.images.source import SourceImage
from pipeline.results import sheet
from pipeline.run.commit import Commit, commit_name
from pipeline.run.plan import write_plan
from pipeline.run.progress import StateReader, device_time
from pipeline.run.stage import BatchFunction, MakeFunctions
from pipeline.sources.listing import list_images
from pipeline.stages.functions import Functions
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

SAMPLES = BUNDLED / "avatars" / "samples"


def resolved_at(root: Path | str, **changes: object) -> ResolvedRun:
    values = {"source": str(SAMPLES), "output": str(root), "edits": ["glasses=1"], "preview": 0, **changes}
    return resolve(RunSpec.model_validate(values))


def overhead(root: Path, batch_size: int = 8) -> None:
    """Compare the bare loop in this thread with the worker and its threads and files: 64 samples, 40 + 40 steps.

    Each runs twice, in the order bare, worker, worker, bare, so that a machine that slows down favours neither.
    """
    functions = Functions(resolved_at(root).settings)
    images = [decode(fetch(image), 32, "crop").pixels for image in list_images(str(SAMPLES))]
    pixels, keys = torch.from_numpy(np.stack(images))[:, None], [str(i) for i in range(len(images))]

    def bare() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for i in range(0, len(keys), batch_size):
                functions.fused(pixels[i : i + batch_size], keys[i : i + batch_size])
        return time.perf_counter() - start

    def engine(name: str) -> float:
        resolved = resolved_at(root / name, shard_size=16)
        plan = open_run(Store(resolved.spec.output), resolved)
        options = WorkerOptions(batch_size)
        fused = {"fused": functions.fused}
        with Worker(resolved.spec.output, "bench", fused, resolved.image_format, options) as worker:
            start = time.perf_counter()
            for shard in range(plan.shards):
                worker.run(resolved.stages[0], shard)
            seconds = time.perf_counter() - start
        spent = worker.state()["seconds"]
        waits = spent["wait_for_reader"] + spent["wait_for_writer"]
        print(f"device busy {100 * spent['device'] / (spent['device'] + waits):.1f} % of the worker's time")
        return seconds

    with torch.inference_mode():
        functions.fused(pixels[:batch_size], keys[:batch_size])
    times = [bare(), engine("one"), engine("two"), bare()]
    loop, worker = times[0] + times[3], times[1] + times[2]
    print("seconds: " + ", ".join(f"{seconds:.1f}" for seconds in times))
    print(f"bare loop {2 * len(keys) / loop:.3f} img/s, worker {2 * len(keys) / worker:.3f} img/s: "
          f"overhead {100 * (worker / loop - 1):.1f} %")  # fmt: skip


def reader(root: Path, count: int = 100) -> None:
    """Measure fetch + decode + resize in one thread, from the local disk."""
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


def finished_run(root: Store, source: Path, shards: int) -> ResolvedRun:
    """Write the plan and commits of a finished run of `shards` shards of one image, without images and manifests."""
    source.mkdir()
    for index in range(shards):
        (source / f"{index:05d}.png").write_bytes(b"x")
    resolved = resolved_at(root.url, source=str(source), shard_size=1)
    plan = open_run(root, resolved)

    def commit(shard: int) -> None:
        record = Commit(
            stage="boost",
            shard=shard,
            attempt="a",
            images=1,
            statuses={"ok": 1},
            manifest="manifest/x.parquet",
            files=[],
            input_digest=None,
        )
        root.create(commit_name("boost", shard), json.dumps(vars(record)).encode())

    for _ in read_ahead(commit, range(plan.shards)):
        pass
    root.write(sheet.NAME, b"")
    return resolved


def keep_state(store: Store, shards: int) -> None:
    """Keep the state of the run, as a run does when it ends."""
    reader = StateReader(store, {"boost": (shards, shards)})
    reader.read()
    reader.keep()


def timed(what: str, act: Callable[[], object]) -> None:
    start = time.perf_counter()
    act()
    print(f"{what}: {time.perf_counter() - start:.2f} s")


def rerun(root: Path, shards: int = 10_000) -> None:
    """Time the status of a finished run, and the run itself. The first call opens every commit, later ones only new."""
    store = Store(str(root / "out"))
    resolved = finished_run(store, root / "source", shards)
    timed(f"status of a run of {shards:,} committed shards, none of them known", lambda: read_state(store))
    keep_state(store, shards)
    timed("status after the run has ended", lambda: read_state(store))
    timed("the run called again, nothing started", lambda: run(resolved.spec))


def calls(root: Path, shards: int = 10_000) -> None:
    """Count the calls to S3 where s3fs sends them."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = Store("s3://bucket/out")
    store.fs.mkdir("bucket")
    sent: Counter[str] = Counter()
    send = s3fs.S3FileSystem._call_s3

    async def counted(self: s3fs.S3FileSystem, method: str, *args: object, **kwargs: object) -> object:
        sent[method] += 1
        return await send(self, method, *args, **kwargs)

    try:
        resolved = finished_run(store, root / "source", shards)
        keep_state(store, shards)
        s3fs.S3FileSystem._call_s3 = counted
        for what, act in {
            "status": lambda: read_state(store),
            "the run called again": lambda: run(resolved.spec),
        }.items():
            sent.clear()
            timed(f"{what}, {shards:,} committed shards on S3", act)
            print("  " + ", ".join(f"{method} {count}" for method, count in sorted(sent.items())))
    finally:
        s3fs.S3FileSystem._call_s3 = send
        server.stop()


def fixed_time(seconds: float) -> MakeFunctions:
    """A stand-in for the net that takes `seconds` per image and returns the image."""

    def load() -> dict[str, BatchFunction]:
        def fused(batch: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
            time.sleep(seconds * len(keys))
            return batch

        return {"fused": fused}

    return load


def actors(root: Path, counts: tuple[int, ...] = (1, 8), seconds: float = 0.1, shard_size: int = 8) -> None:
    """Measure images/s between the first fifth and the last fifth of the commits.

    This leaves out the start of the actors and the tail.
    """
    rates = []
    for count in counts:
        source, out = root / f"source-{count}", root / f"out-{count}"
        source.mkdir()
        sample = next(SAMPLES.glob("*.png")).read_bytes()
        for index in range(count * 40 * shard_size):
            (source / f"{index:05d}.png").write_bytes(sample)
        resolved, store = resolved_at(out, source=str(source), shard_size=shard_size), Store(str(out))
        plan = open_run(store, resolved)
        options = EngineOptions(actors=count, batch_size=shard_size)
        engine = Engine(store, resolved.stages, fixed_time(seconds), resolved.image_format, options)
        with ray_session(None):
            outcome = engine.run(pending_units(store, resolved.stages, range(plan.shards)))
        assert outcome.finished
        times = sorted(path.stat().st_mtime for path in (out / "commit" / "boost").iterdir())
        first, last = len(times) // 5, 4 * len(times) // 5
        rates.append((last - first) * shard_size / (times[last] - times[first]))
        busy = device_time(outcome.seconds)["device"]
        print(f"{count} actors: {rates[-1]:.1f} img/s, device busy {100 * busy:.1f} %")
    print(f"{counts[0]} -> {counts[-1]} actors: {100 * rates[-1] / rates[0] / counts[-1] * counts[0]:.1f} % of linear")


def plan(root: Path, count: int) -> None:
    """Time the plan of `count` images. The listing is made up, so that no disk is measured."""

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
    parser.add_argument("what", choices=["plan", "rerun", "calls", "actors", "reader", "overhead"])
    parser.add_argument("--images", type=int, default=1_000_000, help="of the plan")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "plan":
            plan(Path(folder), arguments.images)
        else:
            getattr(sys.modules[__name__], arguments.what)(Path(folder))


if __name__ == "__main__":
    main()
