"""The whole pipeline on a device: JPEG folder in, edited JPEGs out; and what becomes of what goes wrong there.

Each row is one edit by a process of new runs on a net with random weights. The worker runs in this process; the actor
is the same run through Ray, with what Ray needs to start. `device busy` is the share of the time in which the device
thread waited neither for readers nor for writers.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.full_nets import make_images, make_model
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.runs.run import run
from jobs.spec.run import RunSpec
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.run.commit import committed, committed_rows
from pipeline.run.progress import read_heartbeats
from pipeline.stages.loading import load_functions
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from benchmarks.on_gpu import Proof, Table

FAR_TOO_MANY, SMALL_SHARE = 128, 0.05
WAIT_SECONDS = 300


class Ran(NamedTuple):
    """How a run went."""

    images_per_s: float
    busy: float
    batch_size: int
    peak_gib: float


@cache
def model_of(folder: Path, size: int, base: int, family: str) -> tuple[Path, Path]:
    root = folder / family.split()[0].strip(",")
    root.mkdir(parents=True, exist_ok=True)
    return make_model(root, size, base, family)


def spec_of(proof: "Proof", family: str, name: str, **changes: Any) -> RunSpec:
    """A run of one edit over the benchmark's photographs."""
    scale, source = proof.scale, proof.folder / "photographs"
    if not source.exists():
        make_images(source, scale.images, scale.size)
    model, direction = model_of(proof.folder / "models", scale.size, scale.base, family)
    engine = {"check": False, "device": proof.device, **changes.pop("engine", {})}
    values: dict[str, Any] = {
        "source": str(source),
        "output": str(proof.folder / "runs" / str(os.getpid()) / name),
        "model": str(model),
        "directions": {"random": str(direction)},
        "edits": ["random=1"],
        "codec": "jpeg",
        "preview": 0,
        "shard_size": max(4, scale.images // 8),
        **({} if proof.on_gpu else {"n_inv": scale.steps, "n_gen": scale.steps}),
        **changes,
        "engine": engine,
    }
    return RunSpec.model_validate(values)


Wrap = Callable[[Mapping[str, Callable[..., Any]]], Mapping[str, Callable[..., Any]]]


def run_worker(
    proof: "Proof",
    spec: RunSpec,
    batch_size: int | None = None,
    wrap: Wrap = lambda functions: functions,
    share: float = 1,
) -> Ran:
    """Do a whole run with a worker in this process."""
    resolved = resolve(spec)
    store = Store(spec.output)
    plan = open_run(store, resolved)
    proof.release()
    functions = wrap(load_functions(replace(resolved.settings, device=proof.device)))
    options = WorkerOptions(batch_size, readers=8, writers=4, device=proof.device, share=share)
    with Worker(store.url, "here", functions, resolved.image_format, options) as worker:
        start = time.perf_counter()
        run_shards(worker, resolved.final, plan.shards)
        wall = time.perf_counter() - start
    statuses = Counter(row["status"] for row in committed_rows(store, "boost", sorted(committed(store, "boost"))))
    assert statuses == {"ok": plan.images}, statuses
    state, seconds = worker.state(), worker.state()["seconds"]
    waits = seconds.get("wait_for_reader", 0) + seconds.get("wait_for_writer", 0)
    peak = torch.cuda.max_memory_allocated() / 2**30 if proof.on_gpu else float("nan")
    ran = Ran(plan.images / wall, seconds["device"] / (seconds["device"] + waits), state["batch_size"], peak)
    del worker, functions
    proof.release()  # others work on the same card
    return ran


def run_shards(worker: Worker, stage: Any, shards: int) -> None:
    """All shards, two at a time as an actor has them."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as calls:
        list(calls.map(lambda shard: worker.run(stage, shard), range(shards)))


def throughput(proof: "Proof") -> "list[Table]":
    """Images per second through the whole pipeline, by family and preset, in a worker and in a Ray actor."""
    from benchmarks.on_gpu import Table

    official = proof.facts.get("levers", {}).get("official", {}).get("images_per_s", float("nan"))
    presets = ("default", "fast") if proof.on_gpu else (None,)
    rows: list[tuple[object, ...]] = []
    found: dict[str, Any] = {}
    for family in proof.scale.families:
        for preset in presets:
            name = f"{family.split()[0].strip(',')}-{preset}"
            changes = {"preset": preset} if preset else {}
            ran = run_worker(proof, spec_of(proof, family, name, **changes))
            found[name] = ran._asdict()
            times = f"{ran.images_per_s / official:.0f}" if family.startswith("Ho") else ""
            rows.append(
                (
                    f"{family}, {preset or 'few steps'}",
                    f"{ran.images_per_s:.2f}",
                    f"{3600 * ran.images_per_s:,.0f}",
                    times,
                    f"{100 * ran.busy:.1f} %",
                    ran.batch_size,
                    f"{ran.peak_gib:.1f}",
                )
            )
    start = time.perf_counter()
    spec = spec_of(proof, proof.scale.families[0], "actor")
    outcome = run(spec).outcome
    wall = time.perf_counter() - start
    assert outcome is not None and outcome.finished, outcome
    rows.append((f"{proof.scale.families[0]}, one Ray actor, its start included", f"{proof.scale.images / wall:.2f}"))
    rows[-1] += (f"{3600 * proof.scale.images / wall:,.0f}", "", "", "", "")
    proof.facts["pipeline"] = found | {"actor": {"images_per_s": proof.scale.images / wall}}
    heads = ("net and process", "images/s", "images/hour", "times the official", "device busy", "batch", "peak GiB")
    return [Table(f"JPEG to JPEG at {proof.scale.size} px, {proof.scale.images} images", heads, rows)]


def short_of_memory(functions: Mapping[str, Callable[..., Any]]) -> Mapping[str, Callable[..., Any]]:
    """Functions that behave as if the memory of a CPU were that of a small card."""

    def fused(batch: Tensor, *of_items: Any) -> Any:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("as if there were no memory")
        return functions["fused"](batch, *of_items)

    return {**functions, "fused": fused}


def failures(proof: "Proof") -> "list[Table]":
    """A batch that is far too large, an actor that is killed, and two actors on half a device each."""
    from benchmarks.on_gpu import Table

    family = proof.scale.families[0]
    many = FAR_TOO_MANY if proof.on_gpu else proof.scale.batch
    eager = {"execution": "eager"}
    halved = run_worker(
        proof,
        spec_of(proof, family, "too-large", engine=eager),
        many,
        (lambda functions: functions) if proof.on_gpu else short_of_memory,
        SMALL_SHARE,
    )
    if proof.on_gpu:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert halved.batch_size < many
    rows: list[tuple[object, ...]] = [
        (f"no memory for batches of {many}", f"every image edited, in batches of {halved.batch_size}")
    ]
    few = max(1, proof.scale.images // 8)
    killed = spec_of(proof, family, "killed", shard_size=few, engine={"batch_size": few, **eager})
    rows.append(("an actor is killed", kill_an_actor(proof, killed)))
    shared = {"actors": 2, "gpu_share": 0.5, **eager}
    start = time.perf_counter()
    spec = spec_of(proof, family, "shared", engine=shared)
    outcome = run(spec).outcome
    assert outcome is not None and outcome.finished, outcome
    beats = read_heartbeats(Store(spec.output))
    assert len(beats) == 2, beats
    each = " and ".join(str(beat["images"]) for beat in beats)
    rows.append(("two actors, half a device each", f"{each} images in {time.perf_counter() - start:.0f} s"))
    proof.facts["failures"] = dict(rows)
    return [Table("What goes wrong", ("case", "what became of it"), rows)]


def kill_an_actor(proof: "Proof", spec: RunSpec) -> str:
    """Kill the actor of a run after its first commit, and say what became of the run."""
    config = proof.folder / "killed.json"
    config.write_text(spec.model_dump_json(exclude_none=True))
    command = [sys.executable, "-m", "jobs", "run", "-c", str(config)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    store, deadline = Store(spec.output), time.monotonic() + WAIT_SECONDS
    try:
        while not committed(store, "boost"):
            assert driver.poll() is None and time.monotonic() < deadline, "the run makes no commit"
            time.sleep(0.2)
        os.kill(read_heartbeats(store)[0]["pid"], signal.SIGKILL)
        said, _ = driver.communicate(timeout=WAIT_SECONDS)
    finally:
        driver.kill()
    assert driver.returncode == 0 and len(read_heartbeats(store)) == 2, said
    statuses = Counter(row["status"] for row in committed_rows(store, "boost", sorted(committed(store, "boost"))))
    assert statuses == {"ok": proof.scale.images}, statuses
    return f"another took its place, and all {proof.scale.images} images are there"
