"""Starts and stops the Ray actors around workers, and keeps track of the calls that each of them works on."""

import logging
import os
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from asyrp.errors import UserError
from pipeline.engine.cluster import Cluster
from pipeline.engine.shard_attempt import ShardReport
from pipeline.engine.telemetry import ActorMetrics
from pipeline.engine.worker import SHARDS_IN_FLIGHT, Worker, WorkerOptions
from pipeline.run.stage import ImageFormat, MakeFunctions, Stage

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30
ASK_SECONDS = 10.0  # between two questions to an actor whether it is there
LONGEST_STEP = 5.0
BROKEN_DEVICE = ("CUDA error", "CUDA driver error", "cuDNN error", "HIP error")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Speed knobs and failure budgets. None of them changes a pixel.

    `max_failed` is the share of images that may fail before the run stops. `shard_deadline` is in seconds.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    actors: int | None = None  # None: as many as the GPUs hold, or one on CPUs
    may_grow: bool = False  # allow more actors than there are GPUs now; the additional ones wait for nodes
    gpu_share: float = 1  # of a GPU, for each actor
    batch_size: int | None = None  # None: as many as suit the device
    readers: int = 4
    writers: int = 4
    max_failed: float = 0.3
    shard_deadline: float = 600


class Unit(NamedTuple):
    """One unit of work: a shard of the named stage."""

    stage: str
    shard: int


class Clock:
    """Seconds that the driver was at work. While it stands still (a suspended process, a machine that sleeps) so does
    the clock: nothing is late only because nobody looked."""

    def __init__(self) -> None:
        self.now, self._last = 0.0, time.monotonic()

    def tick(self) -> None:
        """Go on. The driver calls this several times a second."""
        last, self._last = self._last, time.monotonic()
        self.now += min(self._last - last, LONGEST_STEP)


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

    def answer(self) -> None:
        """Show that this process is there and not frozen, whatever else it does."""

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
    since a shard was last finished there. Times are those of the driver's clock. An actor is `placed` when it first
    answers: it has a node and a process then.
    """

    handle: Any
    broken: int
    since: float
    question: ray.ObjectRef
    asked: float
    answered: float
    placed: float | None = None
    started: bool = False
    in_flight: set[Unit] = field(default_factory=set)


@dataclass(frozen=True)
class Call:
    """A call that an actor works on, since a time of the driver's clock: a unit of work, or its start if `unit` is
    None."""

    actor: Actor
    unit: Unit | None
    since: float


class Actors:
    """The actors of a run and their calls, oldest first. Each actor gets the `needs` of Ray's resources."""

    def __init__(
        self, root: str, make_functions: MakeFunctions, image_format: ImageFormat, options: EngineOptions
    ) -> None:
        self.root, self.make_functions = root, make_functions
        self.image_format, self.options = image_format, options
        self.cluster, self.clock = Cluster(), Clock()
        self.count = count_actors(options, int(self.cluster.total("GPU")))
        self.needs: dict[str, float] = {}
        self.alive: list[Actor] = []
        self.calls: dict[ray.ObjectRef, Call] = {}

    def start(self, broken: int = 0) -> None:
        """Start one more actor. If there is no node for it yet, it waits for one."""
        on_gpu, cpus = self.options.device == "cuda", (self.cluster.total("CPU") or 1) / self.count
        reserved = 1.0 if on_gpu else cpus if cpus < 1 else float(int(cpus))
        share = self.options.gpu_share if on_gpu else 0
        self.needs = {"GPU": share, "CPU": reserved} if on_gpu else {"CPU": reserved}
        handle: Any = (
            ray.remote(EditActor)
            .options(num_gpus=share, num_cpus=reserved, max_concurrency=SHARDS_IN_FLIGHT + 2)
            .remote(uuid.uuid4().hex[:8])
        )
        options = WorkerOptions(
            self.options.batch_size, self.options.readers, self.options.writers, self.options.device, share or 1
        )
        threads = None if on_gpu else self._threads(cpus)
        now = self.clock.now
        actor = Actor(handle, broken, since=now, question=handle.answer.remote(), asked=now, answered=now)
        self.alive.append(actor)
        call = handle.start.remote(self.root, self.make_functions, self.image_format, options, threads)
        self.calls[call] = Call(actor, None, now)

    def _threads(self, cpus: float) -> int:
        """The threads of torch in an actor with so many CPUs. Where the actors are on this machine alone, the user's
        OMP_NUM_THREADS counts; on a cluster Ray sets that variable itself."""
        asked = os.environ.get("OMP_NUM_THREADS", "")
        if asked.isdecimal() and int(asked) and not self.options.may_grow:
            return int(asked)
        return max(1, int(cpus))

    def send(self, actor: Actor, stage: Stage, unit: Unit) -> None:
        actor.in_flight.add(unit)
        self.calls[actor.handle.run.remote(stage, unit.shard)] = Call(actor, unit, self.clock.now)

    def seconds(self, call: Call) -> float:
        """How long an actor has been at work on a call."""
        return self.clock.now - call.since

    def listen(self) -> None:
        """Note which actors have answered, and ask them again after a while."""
        questions = [actor.question for actor in self.alive]
        answered = set(ray.wait(questions, num_returns=len(questions), timeout=0)[0]) if questions else set()
        for actor in self.alive:
            if actor.question in answered:
                actor.answered = self.clock.now
                actor.placed = self.clock.now if actor.placed is None else actor.placed
                if self.clock.now - actor.asked > ASK_SECONDS:
                    actor.question, actor.asked = actor.handle.answer.remote(), self.clock.now

    def done(self, timeout: float) -> list[ray.ObjectRef]:
        """The calls that have ended. It waits at most `timeout` seconds for the first."""
        done, _ = ray.wait(list(self.calls), num_returns=1, timeout=timeout)
        self.clock.tick()
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
        """Kill all actors and look at the cluster no more."""
        for actor in self.alive:
            ray.kill(actor.handle)
        self.cluster.close()


def count_actors(options: EngineOptions, gpus: int) -> int:
    """The number of actors that a run gets on so many GPUs. It stays the same when the cluster grows or shrinks.

    Raises:
        UserError: if the cluster has too few GPUs and may not grow.
    """
    if options.device == "cpu":
        return options.actors or 1
    places = gpus * int(1 / options.gpu_share)  # Ray gives an actor no parts of two GPUs
    count = options.actors or places
    if count > places and options.may_grow:
        log.warning("the cluster has %d GPUs: the run begins with the first of %d", gpus, count)
    elif not 1 <= count <= places:
        each = "a GPU each" if options.gpu_share == 1 else f"{options.gpu_share:g} of a GPU each"
        raise UserError(f"{max(count, 1)} actors need {each} and the cluster has {gpus}: change --actors")
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
