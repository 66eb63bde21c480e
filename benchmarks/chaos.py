"""Kills a run at random points again and again, and checks that no output is missing, doubled or changed.

python -m benchmarks.chaos                          # 100 kills in a run of 2,000 images: 8 minutes on 2 cores
python -m benchmarks.chaos --kills 5 --images 200   # a short one

The three nodes are raylets of this machine, with GPUs that are only counted. The net is a stand-in; everything else is
what every run uses. The kills are drawn from --seed and spread over the run. Each kills (SIGKILL) an actor, its whole
node or the driver, while an actor is about to read, compute or write an image, or just before or after it commits a
shard. A dead node is replaced. A dead driver is started again, as a scheduler does. At the end the outputs are compared
with those of an undisturbed run. The exit code is 1 if anything is wrong.
"""

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ray.cluster_utils import Cluster
from torch import Tensor

from jobs.runs.record import open_run
from jobs.runs.resolve import ResolvedRun, resolve
from jobs.runs.run import compute, no_display
from jobs.spec.run import EngineSpec, RunSpec
from pipeline.engine import reading
from pipeline.engine.driver import Outcome
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.run.commit import committed, committed_rows
from pipeline.run.plan import stage_sizes
from pipeline.run.progress import StateReader
from pipeline.storage.store import Store
from pipeline.upkeep.garbage import collect_garbage
from pipeline.upkeep.verify import Verification, verify

NODES, NODE = 3, {"num_cpus": 1, "num_gpus": 1}
SHARD_SIZE, BATCH_SIZE = 8, 4
SECONDS_A_BATCH = 0.1
WHO = ("actor", "actor", "node", "driver")  # actors are killed twice as often
WHERE = ("read", "compute", "write", "before commit", "after commit")
SPARE_SHARDS = 15  # shards that are left when the last kill is due
SPARE_DRIVERS = 10
STAGE = "boost"


@dataclass(frozen=True)
class Kill:
    """Who is killed and where. Due once `shards` are committed and an actor has then passed the place `skip` times."""

    who: str
    where: str
    shards: int
    skip: int


def draw_kills(count: int, shards: int, seed: int) -> list[Kill]:
    """Every pair of WHO and WHERE in random order, repeated until there are `count` kills."""
    rng = random.Random(seed)
    kinds = list(itertools.product(WHO, WHERE))
    drawn = [kind for _ in range(0, count, len(kinds)) for kind in rng.sample(kinds, len(kinds))][:count]
    due = sorted(rng.randrange(max(1, shards - SPARE_SHARDS)) for _ in drawn)
    skips = (0 if "commit" in where else rng.randrange(3) for _, where in drawn)
    return [Kill(*kind, after, skip) for kind, after, skip in zip(drawn, due, skips, strict=True)]


# The run and its files


@dataclass(frozen=True)
class Place:
    """The paths: the images, the run, an undisturbed run, the kills that were carried out, the computed images."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def struck(self) -> Path:
        return self.folder / "struck"

    @property
    def computed(self) -> Path:
        return self.folder / "computed"

    @property
    def driver(self) -> Path:
        return self.folder / "driver.pid"

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "run"))

    @property
    def calm(self) -> Store:
        return Store(str(self.folder / "calm"))

    def make(self, images: int) -> None:
        for folder in (self.images, self.struck, self.computed):
            folder.mkdir()
        rng = np.random.default_rng(0)
        for index in range(images):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / f"{index:05d}.png", compress_level=1)

    def resolved(self, store: Store) -> ResolvedRun:
        values = {"source": str(self.images), "output": store.url, "edits": ["glasses=1"], "preview": 0}
        return resolve(RunSpec.model_validate({**values, "shard_size": SHARD_SIZE}))


def picture(batch: Tensor, keys: Sequence[str]) -> Tensor:
    """Stands in for the net: makes a picture that depends on every pixel and on the key."""
    shades = torch.tensor([zlib.crc32(key.encode()) % 101 / 100 for key in keys])
    return batch.flip(-1) * 0.5 + (shades - 0.5)[:, None, None, None, None]


# In the actors


class Trap:
    """An actor calls it at every place where it can be killed. It strikes when a kill is due, in one actor only."""

    def __init__(self, place: Place, kills: Sequence[Kill]) -> None:
        self.place, self.kills = place, kills
        self.passed: Counter[int] = Counter()

    def __call__(self, where: str) -> None:
        number = len(list(self.place.struck.iterdir()))
        if number < len(self.kills) and self._is_due(number, where) and self._is_first(number):
            self._strike(self.kills[number].who)

    def _is_due(self, number: int, where: str) -> bool:
        kill = self.kills[number]
        if kill.where != where or len(committed(self.place.store, STAGE)) < kill.shards:
            return False
        self.passed[number] += 1
        return self.passed[number] > kill.skip

    def _is_first(self, number: int) -> bool:
        try:
            (self.place.struck / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _strike(self, who: str) -> None:
        if who == "driver":
            os.kill(int(self.place.driver.read_text()), signal.SIGKILL)
            return
        if who == "node":
            os.kill(os.getppid(), signal.SIGKILL)  # the raylet
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Net:
    """Lays the traps in the actor that loads it, and counts the images that the actor computes."""

    folder: Path
    kills: tuple[Kill, ...]
    device: str = "cuda"

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        place = Place(self.folder)
        trap = Trap(place, self.kills)
        lay_traps(trap)

        def fused(batch: Tensor, keys: Sequence[str]) -> Tensor:
            trap("compute")
            time.sleep(SECONDS_A_BATCH)
            with (place.computed / str(os.getpid())).open("a") as file:
                file.write(f"{len(set(keys))}\n")
            return picture(batch, keys)

        return {"fused": fused}


def lay_traps(trap: Trap) -> None:
    """Put the trap around the functions with which the worker of this process reads, writes and commits."""
    fetch, write, create = reading.fetch, Store.write, Store.create

    def trapped_fetch(image: Any) -> bytes:
        trap("read")
        return fetch(image)

    def trapped_write(store: Store, name: str, data: bytes) -> None:
        if name.startswith("data/"):
            trap("write")
        write(store, name, data)

    def trapped_create(store: Store, name: str, data: bytes) -> bool:
        trap("before commit")
        created = create(store, name, data)
        trap("after commit")
        return created

    reading.fetch, Store.write, Store.create = trapped_fetch, trapped_write, trapped_create


# The driver


def drive(place: Place, address: str, kills: Sequence[Kill]) -> Outcome:
    """Do what `asyrp run --address` does, with the stand-in for the net."""
    resolved = place.resolved(place.store)
    plan = open_run(place.store, resolved)
    values = {"address": address, "device": "cuda", "actors": NODES, "batch_size": BATCH_SIZE}
    engine = EngineSpec.model_validate(values)
    display = no_display(StateReader(place.store, stage_sizes(resolved.stages, plan)))
    net = Net(place.folder, tuple(kills))
    return compute(
        place.store,
        resolved.stages,
        load=Net.functions,
        settings=net,
        image_format=resolved.image_format,
        knobs=engine,
        shards=range(plan.shards),
        display=display,
    )


# The nodes and the drivers


def run_calmly(place: Place) -> None:
    """Compute the whole run in this process, undisturbed."""
    resolved = place.resolved(place.calm)
    plan = open_run(place.calm, resolved)
    options = WorkerOptions(BATCH_SIZE)
    with Worker(place.calm.url, "calm", {"fused": picture}, resolved.image_format, options) as calm:
        for shard in range(plan.shards):
            calm.run(resolved.stages[0], shard)


def run_in_chaos(place: Place, arguments: Sequence[str], spare: int) -> Counter[int]:
    """Start drivers until one has finished the run. Returns how many drivers ended with each exit code."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(**NODE) for _ in range(NODES)]
    ended: Counter[int] = Counter()
    command = [sys.executable, "-m", "benchmarks.chaos", *arguments, "--drive", cluster.address, str(place.folder)]
    try:
        while not ended[0]:
            if ended.total() >= spare:
                raise RuntimeError(f"{ended.total()} drivers did not get to the end: {dict(ended)}")
            ended[drive_once(place, command, cluster, nodes)] += 1
    finally:
        cluster.shutdown()
    return ended


def drive_once(place: Place, command: Sequence[str], cluster: Cluster, nodes: list[Any]) -> int:
    """Run one driver from its start to its end. Returns its exit code."""
    with (place.folder / "drivers.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as driver:
        place.driver.write_text(str(driver.pid))
        while driver.poll() is None:
            replace_dead_nodes(cluster, nodes)
            time.sleep(0.05)
    return driver.returncode


def replace_dead_nodes(cluster: Cluster, nodes: list[Any]) -> None:
    for index, node in enumerate(nodes):
        if any(raylet.process.poll() is not None for raylet in node.all_processes["raylet"]):
            cluster.remove_node(node, allow_graceful=False)
            nodes[index] = cluster.add_node(**NODE)


# The proof


@dataclass(frozen=True)
class Proof:
    """The run compared with its plan and with the undisturbed run: counts of images, and reports of verify and gc."""

    images: int
    missing: int
    duplicated: int
    changed: int
    report: Verification
    freed: int
    report_after_gc: Verification

    @property
    def good(self) -> bool:
        wrong = self.missing + self.duplicated + self.changed
        return not wrong and self.report.whole and self.report_after_gc.whole


def prove(place: Place) -> Proof:
    resolved = place.resolved(place.store)
    plan = open_run(place.store, resolved)
    sizes = stage_sizes(resolved.stages, plan)
    wanted, found = outputs(place.calm), outputs(place.store)
    report = verify(place.store, plan, resolved.stages, sizes, deep=True)
    freed = collect_garbage(place.store, sizes, older_than=0).freed
    return Proof(
        images=plan.images,
        missing=len(wanted.keys() - found.keys()),
        duplicated=sum(len(digests) > 1 for digests in found.values()),
        changed=sum(set(found[key]) != set(wanted[key]) for key in wanted.keys() & found.keys()),
        report=report,
        freed=len(freed),
        report_after_gc=verify(place.store, plan, resolved.stages, sizes, deep=True),
    )


def outputs(store: Store) -> dict[str, list[str]]:
    """The SHA-256 of the outputs of every image, by its key. Each image has one if all is well."""
    found: dict[str, list[str]] = {}
    for row in committed_rows(store, STAGE, sorted(committed(store, STAGE))):
        found.setdefault(row["key"], []).append(row["output_sha256"])
    return found


def tell(place: Place, kills: Sequence[Kill], ended: Counter[int], proof: Proof, minutes: float) -> bool:
    """Print what happened. Returns whether all is well."""
    struck = kills[: len(list(place.struck.iterdir()))]
    counts = Counter((kill.who, kill.where) for kill in struck)
    print(f"{len(struck)} of {len(kills)} kills in {minutes:.1f} minutes")
    print(" " * 8 + "".join(f"{where:>15}" for where in WHERE))
    for who in dict.fromkeys(WHO):
        print(f"{who:8}" + "".join(f"{counts[who, where]:>15}" for where in WHERE))
    print(f"drivers: {ended.total()} started, {ended[-signal.SIGKILL]} killed, exit codes {dict(ended)}")
    computed = sum(int(line) for path in place.computed.iterdir() for line in path.read_text().split())
    print(f"work: {computed:,} images computed for {proof.images:,}, {computed / proof.images:.2f} times")
    print(f"outputs: {proof.missing} missing, {proof.duplicated} duplicated, {proof.changed} not as undisturbed")
    for name, report in (("verify --deep", proof.report), ("after gc", proof.report_after_gc)):
        print(f"{name}: {len(report.findings)} findings in {report.files:,} files")
    print(f"gc freed what {proof.freed} attempts had left behind")
    return proof.good and len(struck) == len(kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=2, metavar=("ADDRESS", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    kills = draw_kills(given.kills, -(-given.images // SHARD_SIZE), given.seed)
    if given.drive:
        address, folder = given.drive
        sys.exit(0 if drive(Place(Path(folder)), address, kills).finished else 3)
    with tempfile.TemporaryDirectory() as folder:
        place, start = Place(Path(folder)), time.monotonic()
        place.make(given.images)
        run_calmly(place)
        ended = run_in_chaos(place, sys.argv[1:], given.kills + SPARE_DRIVERS)
        good = tell(place, kills, ended, prove(place), (time.monotonic() - start) / 60)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
