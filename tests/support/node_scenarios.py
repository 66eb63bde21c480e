"""Gives runs on clusters whose nodes come and go, each in a process of its own.

python -m tests.support.node_scenarios SCENARIO FOLDER

The nodes are raylets of this machine and their GPUs are counted only: the net is a stand-in.
"""

import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from pipeline.engine import device
from pipeline.engine.actors import EngineOptions
from pipeline.engine.driver import Engine, Outcome, pending_units
from pipeline.engine.transfers import NoTransfers
from pipeline.run.commit import committed
from pipeline.storage.store import Store
from tests.support.runs import make_faces, spec

SHARDS = 8
GPU_NODE = {"num_cpus": 1, "num_gpus": 1}


def slow_stand_in() -> Any:
    """The functions of an actor, called in its process, where the device that it was given is not there."""
    device.transfers_to = lambda _: NoTransfers()  # type: ignore[assignment]

    def fused(batch: Any, keys: Any) -> Any:  # noqa: ARG001
        time.sleep(0.5)
        return batch

    return {"fused": fused}


def edit(folder: Path, **options: Any) -> Outcome:
    """A run of a few shards on the cluster that this process has joined."""
    resolved = resolve(spec(make_faces(folder / "faces", 2 * SHARDS), folder / "out", shard_size=2))
    store = Store(resolved.spec.output)
    plan = open_run(store, resolved)
    options = EngineOptions(device="cuda", batch_size=2, **options)
    return Engine(store, resolved.stages, slow_stand_in, resolved.image_format, options).run(
        pending_units(store, resolved.stages, range(plan.shards))
    )


def wait_for_a_shard(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not committed(Store(str(folder / "out")), "boost"):
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.1)


def a_node_is_lost(cluster: Cluster, folder: Path, pool: Executor) -> Future[Outcome]:
    cluster.add_node(**GPU_NODE)
    lost = cluster.add_node(**GPU_NODE)
    outcome = pool.submit(edit, folder, actors=2)
    wait_for_a_shard(folder)
    cluster.remove_node(lost, allow_graceful=False)
    return outcome


def nodes_come_late(cluster: Cluster, folder: Path, pool: Executor) -> Future[Outcome]:
    outcome = pool.submit(edit, folder, actors=3, may_grow=True)
    time.sleep(3)
    cluster.add_node(**GPU_NODE)
    return outcome


def main(scenario: str, folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    with ThreadPoolExecutor() as pool:  # nodes can be added in the main thread only
        outcome = globals()[scenario](cluster, folder, pool).result()
    assert outcome.finished, outcome
    assert len(committed(Store(str(folder / "out")), "boost")) == SHARDS
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
