"""Drives a run: decides which shard goes to which actor, and what happens after a failure.

Only shard ids travel between driver and actors, never pixels. An actor holds one GPU (or its share of the CPUs) and
works on SHARDS_IN_FLIGHT shards at once. The driver keeps no state of its own between sessions: it reads from storage
what is committed.
"""

import logging
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from asyrp.errors import MachineError, UserError
from pipeline.engine.actors import Actor, Actors, Call, EngineOptions, Unit, is_broken_device
from pipeline.engine.shard_attempt import ShardReport
from pipeline.engine.signals import stop_signals
from pipeline.engine.telemetry import DriverMetrics
from pipeline.engine.watchdog import Watchdog
from pipeline.engine.worker import SHARDS_IN_FLIGHT
from pipeline.images.statuses import HANDLED
from pipeline.run.commit import committed
from pipeline.run.progress import device_time
from pipeline.run.stage import ImageFormat, MakeFunctions, Stage
from pipeline.storage.failures import is_full, machine_failure
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
FAILURES_ALIKE = SHARDS_IN_FLIGHT + 1  # one bad batch can fail all shards in flight; one more failure is no accident
BREAKER_MIN_IMAGES = 200
WAIT_SECONDS = 0.5
RECENT_SHARDS = 100  # the usual time of a shard is the median over this many
SLOW, SLOW_SECONDS = 3, 10.0  # a shard gets a second copy after SLOW times the usual time, at least SLOW_SECONDS
HUNG = 20  # a shard counts as hung after HUNG times the usual time


@dataclass
class Outcome:
    """How a session ended, and what it cost.

    `finished` is False if work is left. `tripped` is a sentence that says why the breaker stopped the run, if it did.
    `quarantined` lists stage, shard and reason. `seconds` are those of the actors' threads, by activity.
    """

    finished: bool = False
    drained: bool = False
    tripped: str | None = None
    quarantined: list[tuple[str, int, str]] = field(default_factory=list)
    images: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": dict(self.seconds), "device_time": device_time(self.seconds)}


def pending_units(store: Store, stages: Sequence[Stage], shards: Sequence[int]) -> list[Unit]:
    """The units that are left to do: those of the plan without the committed ones, from one listing per stage."""
    return [
        Unit(stage.name, shard)
        for stage in stages
        for shard in sorted(set(stage.shards(shards)) - committed(store, stage.name))
    ]


class Engine:
    """Runs units on actors until none is left, the breaker trips, or a signal asks the run to stop."""

    def __init__(
        self,
        store: Store,
        stages: Sequence[Stage],
        make_functions: MakeFunctions,
        image_format: ImageFormat,
        options: EngineOptions,
    ) -> None:
        self.store, self.options = store, options
        self.stages = {stage.name: stage for stage in stages}
        self.actors = Actors(store.url, make_functions, image_format, options)
        self.watchdog = Watchdog(self.actors)
        self.outcome = Outcome()
        self.failures: Counter[Unit | str] = Counter()
        self.failed_starts = self.failed_in_a_row = 0
        self.bad_images = 0
        self.succeeded = False
        self.seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT_SHARDS))
        self.draining = threading.Event()
        self.waiting: list[Unit] = []
        self.unfinished: set[Unit] = set()

    def run(self, units: list[Unit]) -> Outcome:
        """Work through the units. A unit starts when the shard that it reads is committed.

        Raises:
            UserError: if a worker raises one.
            MachineError: if the cluster is lost, no actor starts, a disk is full, or a store fails again and again.
            Exception: the error of the stages, if the first shards fail alike and none has succeeded, or one in the
                start of an actor.
        """
        self.waiting, self.unfinished = list(units), set(units)
        self.metrics = DriverMetrics(self.store.url, (unit.stage for unit in units))
        self.actors.cluster.watch()
        try:
            with self._drain_on_signal():
                for _ in range(min(self.actors.count, len(units))):
                    self.actors.start()
                while self._has_work():
                    for reference in self.actors.done(WAIT_SECONDS):
                        self._handle(reference)
                    self.actors.listen()
                    self._end_stuck()
                    self._end_hung()
                    self._dispatch()
                    self.metrics.actors_alive(len(self.actors.alive))
                if not self.outcome.tripped:
                    self.outcome.seconds.update(self.actors.close())
        finally:
            self.actors.kill_all()
        self.outcome.drained = self.draining.is_set() and bool(self.waiting)
        self.outcome.finished = not self.unfinished and not self.outcome.tripped
        return self.outcome

    # Units that are ready

    def _has_work(self) -> bool:
        """Whether there is anything to wait for.

        The start of an actor that would find nothing to do does not count, nor does a copy of a finished unit.
        """
        if self.outcome.tripped or not self.actors.calls:
            return False
        if any(call.unit in self.unfinished for call in self.actors.calls.values()):
            return True
        return self._has_ready()

    def _has_ready(self) -> bool:
        return not self.draining.is_set() and any(map(self._is_ready, self.waiting))

    def _is_ready(self, unit: Unit) -> bool:
        stage = self.stages[unit.stage]
        return stage.reads is None or bool(stage.input_root) or Unit(stage.reads, unit.shard) not in self.unfinished

    def _dispatch(self) -> None:
        """Give every started actor up to SHARDS_IN_FLIGHT ready units, or copies of slow ones if none is ready.

        A unit that has failed, or was in flight when an actor died, is a suspect and runs alone. If it kills its actor
        again, it is known to be the cause, and no other unit is blamed.
        """
        slow = self._slow_calls()
        for actor in self.actors.alive:
            while actor.started and self._has_room(actor):
                unit = self._take_ready(suspects=not actor.in_flight) or self._take_slow(slow, actor)
                if unit is None:
                    break
                self.actors.send(actor, self.stages[unit.stage], unit)

    def _has_room(self, actor: Actor) -> bool:
        in_flight = actor.in_flight
        return len(in_flight) < SHARDS_IN_FLIGHT and not any(self.failures[unit] for unit in in_flight)

    def _take_ready(self, suspects: bool) -> Unit | None:
        if self.draining.is_set():
            return None
        for index, unit in enumerate(self.waiting):
            if self._is_ready(unit) and (suspects or not self.failures[unit]):
                return self.waiting.pop(index)
        return None

    # Slow and hung shards

    def _usual(self, stage: str) -> float | None:
        """The usual time of a shard of the stage, in seconds; None until one has finished."""
        return median(self.seconds[stage]) if self.seconds[stage] else None

    def _slow_calls(self) -> list[Call]:
        """The calls that delay the end of the run, longest first; none while other units are ready.

        The unit of a slow call is given to a second actor as well, and the first commit counts.
        """
        if self.draining.is_set() or self._has_ready():
            return []
        usual = {stage: self._usual(stage) for stage in self.stages}
        copies = self.actors.copies()

        def is_slow(unit: Unit, seconds: float) -> bool:
            usual_seconds = usual[unit.stage]
            return usual_seconds is not None and seconds > max(SLOW_SECONDS, SLOW * usual_seconds)

        return [
            call
            for call in self.actors.calls.values()
            if call.unit in self.unfinished
            and copies[call.unit] == 1
            and not self.failures[call.unit]
            and is_slow(call.unit, self.actors.seconds(call))
        ]

    @staticmethod
    def _take_slow(slow: list[Call], actor: Actor) -> Unit | None:
        for index, call in enumerate(slow):
            if call.actor is not actor and call.unit is not None:
                log.warning("%s shard %d takes long: a second actor gets it as well", *call.unit)
                return slow.pop(index).unit
        return None

    def _deadline(self, stage: str) -> float:
        """The seconds after which a shard counts as hung.

        Until a shard of the stage has finished, the usual time is unknown, and the deadline is much longer.
        """
        usual = self._usual(stage)
        return HUNG * self.options.shard_deadline if usual is None else max(self.options.shard_deadline, HUNG * usual)

    def _end_hung(self) -> None:
        """Kill the actors that hold a hung unit. The other units that they had in flight are not blamed."""
        deadlines = {stage: self._deadline(stage) for stage in self.stages}
        hung: defaultdict[Actor, set[Unit]] = defaultdict(set)
        for call in self.actors.calls.values():
            if call.unit is not None and self.actors.seconds(call) > deadlines[call.unit.stage]:
                hung[call.actor].add(call.unit)
        for actor, units in hung.items():
            longest = max(deadlines[unit.stage] for unit in units)
            self._lose(actor, f"hung, not done after {longest:.0f} s (engine.shard_deadline)", units)

    def _end_stuck(self) -> None:
        """Replace the actors whose process stands still."""
        for actor, reason in self.watchdog.look():
            self._count_start(actor, reason)
            self._lose(actor, reason, actor.in_flight)

    # Calls that have ended

    def _handle(self, reference: ray.ObjectRef) -> None:
        if reference not in self.actors.calls:  # its actor was lost meanwhile
            return
        call = self.actors.calls[reference]
        try:
            report = ray.get(reference)
        except RayActorError as error:
            self._died(call, error)
        except RayTaskError as error:
            self._failed(reference, error)
        else:
            self.actors.end(reference)
            if call.unit is None:
                self.failed_starts = 0
            else:
                call.actor.broken = 0
                self.seconds[call.unit.stage].append(self.actors.seconds(call))
                self._succeeded(call.unit, report)

    def _succeeded(self, unit: Unit, report: ShardReport) -> None:
        if unit not in self.unfinished:  # another copy was first
            return
        self.unfinished.discard(unit)
        self.metrics.shard_done(unit.stage)
        self.succeeded, self.failed_in_a_row = True, 0
        self.outcome.images += report.images
        rows = sum(report.statuses.values())
        bad_rows = rows - sum(report.statuses.get(status, 0) for status in HANDLED)
        self.bad_images += round(report.images * bad_rows / max(rows, 1))
        bad, seen = self.bad_images, self.outcome.images
        if seen >= BREAKER_MIN_IMAGES and bad > self.options.max_failed * seen:
            self.outcome.tripped = (
                f"{bad} of {seen} images failed, more than the share of {self.options.max_failed:g} that "
                "engine.max_failed allows; `asyrp status` shows how"
            )

    def _died(self, call: Call, error: RayActorError) -> None:
        """The process of an actor, or its node, is gone."""
        if getattr(error, "preempted", False):
            self._lose(call.actor, "preempted", blamed=())
            return
        self._count_start(call.actor, f"its process died: {str(error).partition(chr(10))[0]}")
        self._lose(call.actor, "its actor died", call.actor.in_flight)

    def _count_start(self, actor: Actor, reason: str) -> None:
        """Count a start that has failed, if the actor was not started. The run ends if no start succeeds any more."""
        if actor.started:
            return
        self.failed_starts += 1
        if self.failed_starts >= MAX_ATTEMPTS:
            raise MachineError(
                f"an actor did not start, {MAX_ATTEMPTS} times; the last time {reason} (memory may be short: a smaller "
                "engine.batch_size or fewer engine.actors need less)"
            )

    def _failed(self, reference: ray.ObjectRef, error: RayTaskError) -> None:
        """The worker raised an error. It is raised here if it repeats and no shard has succeeded, otherwise retried."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        call = self.actors.calls[reference]
        reason = f"{type(cause).__name__}: {cause}"
        if is_broken_device(cause):
            self._device_broke(call.actor, reason)
            return
        if isinstance(cause, UserError | MachineError):
            raise cause
        if call.unit is None:
            raise error
        self.actors.end(reference)
        log.warning("%s shard %d failed: %s", *call.unit, reason)
        self._end_without_machine(cause)
        self.failures[reason] += 1
        if not self.succeeded and self.failures[reason] >= FAILURES_ALIKE:
            raise error
        self._retry(call.unit, reason)

    def _end_without_machine(self, cause: Exception) -> None:
        """End the run if the machine or the store fails so that other shards would fail as well."""
        said = machine_failure(cause)
        self.failed_in_a_row = self.failed_in_a_row + 1 if said else 0
        if said and (is_full(cause) or self.failed_in_a_row >= FAILURES_ALIKE * self.actors.count):
            raise MachineError(f"the run at {self.store.url} cannot go on: {said}")

    def _device_broke(self, actor: Actor, reason: str) -> None:
        """The actor's process can no longer use its device.

        A place whose devices break again and again is given up. The run stops when no place is left.
        """
        actor.broken += 1
        self._lose(actor, reason, actor.in_flight)
        if not self.actors.alive and self._has_ready():
            self.outcome.tripped = (
                f"the device broke {MAX_ATTEMPTS} times with no shard done in between, and there is no other; the last "
                f"time it said: {reason.splitlines()[0]}"
            )

    def _lose(self, actor: Actor, reason: str, blamed: Collection[Unit]) -> None:
        """Kill an actor, put the units that it had in flight back, and start another actor in its place.

        Units in `blamed` count one more failure.
        """
        log.warning("lost an actor with %d shards in flight: %s", len(actor.in_flight), reason)
        self.actors.kill(actor)
        for unit in actor.in_flight:
            self._retry(unit, reason, free=unit not in blamed)
        if actor.broken < MAX_ATTEMPTS and not self.draining.is_set():
            self.actors.start(actor.broken)

    def _retry(self, unit: Unit, reason: str, free: bool = False) -> None:
        """Put a unit back behind the others, or quarantine it if it has failed too often.

        A unit that is done or in flight elsewhere is not put back. With `free` no failure is counted.
        """
        if not free:
            self.failures[unit] += 1
            self.metrics.shard_failed(unit.stage)
        if unit not in self.unfinished or self.actors.copies()[unit]:
            return
        if self.failures[unit] < MAX_ATTEMPTS:
            self.waiting.append(unit)
            return
        log.error("%s shard %d is quarantined after %d attempts", *unit, MAX_ATTEMPTS)
        self.outcome.quarantined.append((unit.stage, unit.shard, reason))

    @contextmanager
    def _drain_on_signal(self) -> Iterator[None]:
        """On SIGTERM, SIGHUP or Ctrl-C, finish the shards in flight and stop; on the second one, stop at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def drain(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            if self.draining.is_set():
                raise KeyboardInterrupt
            log.warning("stopping: the shards in flight are being finished; once more to stop at once")
            self.draining.set()

        before = {number: signal.signal(number, drain) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
