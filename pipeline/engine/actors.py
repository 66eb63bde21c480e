"""Starts and stops the Ray actors around workers, and keeps track of the calls that each of them works on."""

import logging
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from asyrp.errors import UserError
from pipeline.engine.shard_attempt import ShardReport
from pipeline.engine.telemetry import ActorMetrics
from pipeline.engine.worker import SHARDS_IN_FLIGHT, Worker, WorkerOptions
from pipeline.run.stage import ImageFormat, MakeFunctions, Stage

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30
BROKEN_DEVICE = ("CUDA error", "CUDA driver error", "cuDNN error", "HIP error")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Speed knobs and failure budgets. None of them changes a pixel.

    `max_failed` is the share of images that may fail before the run stops. `shard_deadline` is in seconds.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    actors: int | None = None  # None: one for each GPU, or one on CPUs
    may_grow: bool = False  # allow more actors than there are GPUs now; the additional ones wait for nodes
    batch_size: int = 8
    readers: int = 4
    writers: int = 4
    max_failed: float = 0.3
    shard_deadline: float = 600


class Unit(NamedTuple):
    """One unit of work: a shard of the named stage."""

    stage: str
    shard: int


class EditActor:
    """A Ray actor that holds one worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.worker: Worker | None = None
        self.metrics: ActorMetrics | None = None

    def start(
        self,
        root: str,
        make_functions: MakeFunctions,
        image_format: ImageFormat,
        options: WorkerOptions,
        threads: int | None = None,
    ) -> None:
        """Load the net, with so many `threads` of torch on a CPU.

        This is not part of __init__, so that its errors reach the driver unchanged.
        """
        if threads:
            torch.set_num_threads(threads)
        self.metrics = ActorMetrics(root)
        self.worker = Worker(root, self.name, make_functions(), image_format, options, observe=self.metrics.heartbeat)
        self.worker.start()

    def run(self, stage: Stage, shard: int) -> ShardReport:
        assert self.worker is not None and self.metrics is not None
        start = time.monotonic()
        report = self.worker.run(stage, shard)
        self.metrics.shard_done(report, time.monotonic() - start)
        return report

    def close(self) -> dict[str, Any]:
        assert self.worker is not None
        return self.worker.close()


@dataclass(eq=False)
class Actor:
    """An actor as the driver sees it.

    When an actor's device breaks, another actor takes its place. `broken` counts the devices that broke in this place
    since a shard was last finished there.
    """

    handle: Any
    broken: int
    started: bool = False
    in_flight: set[Unit] = field(default_factory=set)


@dataclass(frozen=True)
class Call:
    """A call that an actor works on, since a monotonic time: a unit of work, or its start if `unit` is None."""

    actor: Actor
    unit: Unit | None
    since: float

    def seconds(self) -> float:
        return time.monotonic() - self.since


class Actors:
    """The actors of a run and their calls, oldest first."""

    def __init__(
        self, root: str, make_functions: MakeFunctions, image_format: ImageFormat, options: EngineOptions
    ) -> None:
        self.root, self.make_functions = root, make_functions
        self.image_format, self.options = image_format, options
        self.count = count_actors(options)
        self.alive: list[Actor] = []
        self.calls: dict[ray.ObjectRef, Call] = {}

    def start(self, broken: int = 0) -> None:
        """Start one more actor. If there is no node for it yet, it waits for one."""
        on_gpu, cpus = self.options.device == "cuda", ray.cluster_resources().get("CPU", 1) / self.count
        reserved = 1.0 if on_gpu else cpus if cpus < 1 else float(int(cpus))
        handle: Any = (
            ray.remote(EditActor)
            .options(num_gpus=int(on_gpu), num_cpus=reserved, max_concurrency=SHARDS_IN_FLIGHT + 2)
            .remote(uuid.uuid4().hex[:8])
        )
        options = WorkerOptions(self.options.batch_size, self.options.readers, self.options.writers)
        threads = None if on_gpu else max(1, int(cpus))
        actor = Actor(handle, broken)
        self.alive.append(actor)
        call = handle.start.remote(self.root, self.make_functions, self.image_format, options, threads)
        self.calls[call] = Call(actor, None, time.monotonic())

    def send(self, actor: Actor, stage: Stage, unit: Unit) -> None:
        actor.in_flight.add(unit)
        self.calls[actor.handle.run.remote(stage, unit.shard)] = Call(actor, unit, time.monotonic())

    def done(self, timeout: float) -> list[ray.ObjectRef]:
        """The calls that have ended. It waits at most `timeout` seconds for the first."""
        done, _ = ray.wait(list(self.calls), num_returns=1, timeout=timeout)
        return done

    def end(self, reference: ray.ObjectRef) -> Call:
        """Remove a call that has ended, and return it."""
        call = self.calls.pop(reference)
        if call.unit is None:
            call.actor.started = True
        else:
            call.actor.in_flight.discard(call.unit)
        return call

    def kill(self, actor: Actor) -> None:
        ray.kill(actor.handle)
        self.alive.remove(actor)
        self.calls = {reference: call for reference, call in self.calls.items() if call.actor is not actor}

    def copies(self) -> Counter[Unit]:
        """The number of actors that work on each unit."""
        return Counter(call.unit for call in self.calls.values() if call.unit is not None)

    def close(self) -> dict[str, float]:
        """Close the actors that have nothing in flight. Returns the seconds that their threads spent, by activity."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for actor in self.alive:
            if not actor.started or actor.in_flight:
                continue
            try:
                state = ray.get(actor.handle.close.remote(), timeout=CLOSE_SECONDS)
            except (RayActorError, RayTaskError, GetTimeoutError) as error:
                log.warning("an actor did not close: %s", error)
            else:
                for name, spent in state["seconds"].items():
                    seconds[name] += spent
        return seconds

    def kill_all(self) -> None:
        for actor in self.alive:
            ray.kill(actor.handle)


def count_actors(options: EngineOptions) -> int:
    """The number of actors that a run gets. It stays the same when the cluster grows or shrinks.

    Raises:
        UserError: if the cluster has too few GPUs and may not grow.
    """
    if options.device == "cpu":
        return options.actors or 1
    gpus = int(ray.cluster_resources().get("GPU", 0))
    count = options.actors or gpus
    if count > gpus and options.may_grow:
        log.warning("the cluster has %d GPUs: the run begins with the first of %d", gpus, count)
    elif not 1 <= count <= gpus:
        raise UserError(f"{max(count, 1)} actors need a GPU each and the cluster has {gpus}: change --actors")
    return count


def is_broken_device(error: BaseException) -> bool:
    """Whether an error means that its process can no longer use the device.

    After a failed assertion, an illegal access or an ECC error, every further call on the device fails until another
    process begins. torch raises RuntimeError or its subclass AcceleratorError for these errors, and only their text
    tells them apart. Running out of device memory is not such an error.
    """
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and any(name in text for name in BROKEN_DEVICE)
        and "out of memory" not in text
        and "ALLOC_FAILED" not in text
    )


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, or start one on this machine, and leave it when the block ends.

    If this process has already joined a cluster, it is used and not left.

    Raises:
        UserError: if there is no cluster at the address, or none can be started on this machine.
    """
    if ray.is_initialized():
        yield
        return
    dashboard = False if address is None else None
    try:
        # Without an address, Ray would join a cluster that somebody else has left running on this machine.
        ray.init(
            address=address or "local", include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False
        )
    except ConnectionError as error:
        raise UserError(f"there is no Ray cluster at '{address}': {error}") from error
    except Exception as error:
        if type(error) is not Exception:  # Ray raises a bare Exception when a node does not start
            raise
        raise UserError(f"Ray did not start on this machine, try again when it has less to do: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def has_gpu() -> bool:
    """Whether the cluster that this process has joined has a GPU."""
    return ray.cluster_resources().get("GPU", 0) >= 1
