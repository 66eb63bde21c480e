"""Ray actors around workers: which shard goes to which actor, and what a failure costs.

Shard ids travel, pixels never do. An actor holds one GPU (or its share of the CPUs) and keeps SHARDS_IN_FLIGHT
shards going. The driver's only knowledge is what is committed, and that is read from storage.
"""

import logging
import signal
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from asyrp.errors import UserError
from pipeline.commit import committed
from pipeline.shard_job import ShardReport
from pipeline.stage import ImageFormat, MakeFunctions, Stage
from pipeline.storage import Store
from pipeline.worker import SHARDS_IN_FLIGHT, Worker, WorkerOptions

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
FAILURES_ALIKE = SHARDS_IN_FLIGHT + 1  # one batch can fail all the shards in flight; once more is no accident
BREAKER_MIN_IMAGES = 200
WAIT_SECONDS = 0.5
CLOSE_SECONDS = 30


@dataclass(frozen=True)
class EngineOptions:
    """Speed knobs and budgets; none of them changes a pixel."""

    device: Literal["cpu", "cuda"] = "cpu"
    actors: int | None = None
    may_grow: bool = False  # more actors than there are GPUs now: the rest wait for nodes
    batch_size: int = 8
    readers: int = 4
    writers: int = 4
    max_failed: float = 0.3


class Unit(NamedTuple):
    """One piece of work: a shard of the stage of this name."""

    stage: str
    shard: int


@dataclass
class Outcome:
    """How a session ended, and what it cost. `finished` is False where work is left."""

    finished: bool = False
    drained: bool = False
    tripped: str | None = None
    quarantined: list[tuple[str, int, str]] = field(default_factory=list)
    images: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def device_time(self) -> dict[str, float]:
        """Where the time of the device threads went, in shares of 1; the largest says what bounds the run."""
        names = {"device": "device", "reader": "wait_for_reader", "writer": "wait_for_writer"}
        total = sum(self.seconds[name] for name in names.values())
        return {bound: self.seconds[name] / total for bound, name in names.items()} if total else {}

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": dict(self.seconds), "device_time": self.device_time()}


class EditActor:
    """A Ray actor that holds one worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.worker: Worker | None = None

    def start(
        self, root: str, make_functions: MakeFunctions, image_format: ImageFormat, options: WorkerOptions
    ) -> None:
        """Load the net. Apart from __init__, so that its errors arrive as they are."""
        self.worker = Worker(root, self.name, make_functions, image_format, options)

    def run(self, stage: Stage, shard: int) -> ShardReport:
        assert self.worker is not None
        return self.worker.run(stage, shard)

    def close(self) -> dict[str, Any]:
        assert self.worker is not None
        return self.worker.close()


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, or start one on this machine; one that was joined before is left as it is.

    Raises:
        UserError: if there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    dashboard = False if address is None else None
    try:
        # Without an address Ray would join any cluster that somebody else has left running on this machine.
        ray.init(
            address=address or "local", include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False
        )
    except ConnectionError as error:
        raise UserError(f"there is no Ray cluster at '{address}': {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def has_gpu() -> bool:
    """Whether the cluster that this process has joined has a GPU."""
    return ray.cluster_resources().get("GPU", 0) >= 1


def pending_units(store: Store, stages: Sequence[Stage], shards: Sequence[int]) -> list[Unit]:
    """What is left to do: the plan less one listing of commits per stage."""
    return [
        Unit(stage.name, shard)
        for stage in stages
        for shard in sorted(set(stage.shards(shards)) - committed(store, stage.name))
    ]


class Engine:
    """Runs units on actors until none is left, the breaker trips or the run is told to stop."""

    def __init__(
        self,
        store: Store,
        stages: Sequence[Stage],
        make_functions: MakeFunctions,
        image_format: ImageFormat,
        options: EngineOptions,
    ) -> None:
        self.store, self.make_functions = store, make_functions
        self.stages = {stage.name: stage for stage in stages}
        self.image_format, self.options = image_format, options
        self.outcome = Outcome()
        self.failures: Counter[Unit | str] = Counter()
        self.bad_images = 0
        self.succeeded = False
        self.actor_count = 0
        self.actors: dict[Any, set[Unit]] = {}
        self.calls: dict[ray.ObjectRef, tuple[Any, Unit | None]] = {}
        self.draining = threading.Event()
        self.waiting: list[Unit] = []
        self.unfinished: set[Unit] = set()

    def run(self, units: list[Unit]) -> Outcome:
        """Work through the units; one is taken when the shard it reads is committed.

        Raises:
            Exception: what the stages raised, if the first shards fail alike and none has succeeded.
        """
        self.waiting, self.unfinished = list(units), set(units)
        self.actor_count = self._count_actors()
        try:
            with self._drain_on_signal():
                for _ in range(min(self.actor_count, len(units))):
                    self._start_actor()
                while self._has_work():
                    done, _ = ray.wait(list(self.calls), num_returns=1, timeout=WAIT_SECONDS)
                    for call in done:
                        self._handle(call)
                    self._dispatch()
                if not self.outcome.tripped:
                    self._close_actors()
        finally:
            for actor in self.actors:
                ray.kill(actor)
        self.outcome.drained = self.draining.is_set() and bool(self.waiting)
        self.outcome.finished = not self.waiting and not self.outcome.quarantined and not self.outcome.tripped
        return self.outcome

    # Actors

    def _count_actors(self) -> int:
        """How many actors the run is to have, whatever becomes of the cluster."""
        if self.options.device == "cpu":
            return self.options.actors or 1
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = self.options.actors or gpus
        if count > gpus and self.options.may_grow:
            log.warning("the cluster has %d GPUs: the run begins with the first of %d", gpus, count)
        elif not 1 <= count <= gpus:
            raise UserError(f"{max(count, 1)} actors need a GPU each and the cluster has {gpus}: change --actors")
        return count

    def _start_actor(self) -> None:
        count, resources = self.actor_count, ray.cluster_resources()
        on_gpu = self.options.device == "cuda"
        cpus = resources.get("CPU", 1) / count
        reserved = 1.0 if on_gpu else cpus if cpus < 1 else float(int(cpus))
        name = uuid.uuid4().hex[:8]
        actor: Any = (
            ray.remote(EditActor)
            .options(num_gpus=int(on_gpu), num_cpus=reserved, max_concurrency=SHARDS_IN_FLIGHT + 2)
            .remote(name)
        )
        options = WorkerOptions(
            self.options.batch_size,
            self.options.readers,
            self.options.writers,
            threads=None if on_gpu else max(1, int(cpus)),
        )
        call = actor.start.remote(self.store.url, self.make_functions, self.image_format, options)
        self.actors[actor] = set()
        self.calls[call] = (actor, None)

    def _starting(self) -> set[Any]:
        """Actors that cannot be given work yet. Where their node is never there, they stay so."""
        return {actor for actor, unit in self.calls.values() if unit is None}

    def _close_actors(self) -> None:
        for actor in self.actors.keys() - self._starting():
            try:
                state = ray.get(actor.close.remote(), timeout=CLOSE_SECONDS)
            except (RayActorError, RayTaskError, GetTimeoutError) as error:
                log.warning("an actor did not close: %s", error)
            else:
                for name, seconds in state["seconds"].items():
                    self.outcome.seconds[name] += seconds

    # Work

    def _has_work(self) -> bool:
        """Whether there is anything to wait for; not so for an actor that would find nothing to do."""
        if self.outcome.tripped or not self.calls:
            return False
        if any(unit is not None for _, unit in self.calls.values()):
            return True
        return not self.draining.is_set() and any(map(self._is_ready, self.waiting))

    def _dispatch(self) -> None:
        """Give every started actor up to SHARDS_IN_FLIGHT ready units.

        A unit that was there when an actor died is a suspect, and runs alone: if it kills again, it is known which
        it was, and its neighbours are not blamed.
        """
        starting = self._starting()
        for actor, in_flight in self.actors.items():
            while actor not in starting and self._has_room(in_flight):
                unit = self._take_ready(suspects=not in_flight)
                if unit is None:
                    break
                in_flight.add(unit)
                self.calls[actor.run.remote(self.stages[unit.stage], unit.shard)] = (actor, unit)

    def _has_room(self, in_flight: set[Unit]) -> bool:
        return len(in_flight) < SHARDS_IN_FLIGHT and not any(self.failures[unit] for unit in in_flight)

    def _take_ready(self, suspects: bool) -> Unit | None:
        if self.draining.is_set():
            return None
        for index, unit in enumerate(self.waiting):
            if self._is_ready(unit) and (suspects or not self.failures[unit]):
                return self.waiting.pop(index)
        return None

    def _is_ready(self, unit: Unit) -> bool:
        stage = self.stages[unit.stage]
        return stage.reads is None or bool(stage.input_root) or Unit(stage.reads, unit.shard) not in self.unfinished

    def _handle(self, call: ray.ObjectRef) -> None:
        if call not in self.calls:
            return
        actor, unit = self.calls.pop(call)
        try:
            report = ray.get(call)
        except RayActorError as error:
            self._lost(actor, unit, error)
        except RayTaskError as error:
            self._failed(actor, unit, error)
        else:
            if unit is not None:
                self.actors[actor].discard(unit)
                self.unfinished.discard(unit)
                self._succeeded(report)

    def _succeeded(self, report: ShardReport) -> None:
        self.succeeded = True
        self.outcome.images += report.images
        rows = sum(report.statuses.values())
        self.bad_images += round(report.images * (rows - report.statuses.get("ok", 0)) / max(rows, 1))
        bad, seen = self.bad_images, self.outcome.images
        if seen >= BREAKER_MIN_IMAGES and bad > self.options.max_failed * seen:
            self.outcome.tripped = (
                f"{bad} of {seen} images failed, more than the share of {self.options.max_failed:g} that "
                "engine.max_failed allows; `asyrp status` shows how"
            )

    def _lost(self, actor: Any, unit: Unit | None, error: RayActorError) -> None:
        """An actor or its node is gone: its shards go back, and another actor takes its place."""
        units = self.actors.pop(actor, set())
        ray.kill(actor)
        self.calls = {call: held for call, held in self.calls.items() if held[0] is not actor}
        preempted = getattr(error, "preempted", False)
        log.warning("lost an actor with %d shards in flight%s", len(units), ", preempted" if preempted else "")
        for lost in units:
            self._retry(lost, "its actor died", free=preempted)
        if unit is None and not preempted:
            self._count_start_failure(error)
        if not self.draining.is_set():
            self._start_actor()

    def _count_start_failure(self, error: RayActorError) -> None:
        self.failures["start"] += 1
        if self.failures["start"] >= MAX_ATTEMPTS:
            raise error

    def _failed(self, actor: Any, unit: Unit | None, error: RayTaskError) -> None:
        """The worker raised. Where nothing has worked yet, the same error again is ours to report, not to retry."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, UserError):
            raise cause
        if unit is None:
            raise error
        self.actors[actor].discard(unit)
        reason = f"{type(cause).__name__}: {cause}"
        log.warning("%s shard %d failed: %s", unit.stage, unit.shard, reason)
        self.failures[reason] += 1
        if not self.succeeded and self.failures[reason] >= FAILURES_ALIKE:
            raise error
        self._retry(unit, reason)

    def _retry(self, unit: Unit, reason: str, free: bool = False) -> None:
        self.failures[unit] += not free
        if self.failures[unit] < MAX_ATTEMPTS:
            self.waiting.insert(0, unit)
            return
        log.error("%s shard %d is quarantined after %d attempts", unit.stage, unit.shard, MAX_ATTEMPTS)
        self.outcome.quarantined.append((unit.stage, unit.shard, reason))

    @contextmanager
    def _drain_on_signal(self) -> Iterator[None]:
        """SIGTERM or Ctrl-C finishes the shards in flight; the second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def drain(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            if self.draining.is_set():
                raise KeyboardInterrupt
            log.warning("stopping: the shards in flight are being finished; once more to stop at once")
            self.draining.set()

        before = {number: signal.signal(number, drain) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
