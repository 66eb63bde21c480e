"""The embedded scheduler. It starts a process on this machine for every tick of some jobs.

It keeps no state: it finds the ticks that it missed in the history of each job. A job has at most one process here at a
time. The lease of the job keeps other machines apart.
"""

import logging
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Protocol

from asyrp.errors import UserError
from jobs.schedule.next_version import parse_tick, tick_text
from jobs.schedule.tick import skip_tick
from jobs.spec.job import Job
from jobs.spec.schedule import SECOND, Schedule
from pipeline.datasets.leases import last_lease, read_skipped
from pipeline.engine.signals import stop_signals
from pipeline.storage.store import Store, explained

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
"""It bounds the delay until the scheduler notices that the clock was set or the machine slept."""


class Driver(Protocol):
    """The methods of a process that the scheduler uses."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...


Start = Callable[[datetime], Driver]
"""Starts the driver of a tick."""


class ScheduledJob:
    """A job and the process that does its ticks.

    Raises:
        UserError: if it has no schedule, or its history cannot be read.
    """

    def __init__(self, job: Job, start: Start, now: datetime) -> None:
        if job.schedule is None:
            raise UserError(
                f"the job {job.name} has no schedule: add 'schedule:' with a 'cron:', or use asyrp jobs run"
            )
        self.job, self.start, self.schedule = job, start, job.schedule
        self.store = Store(job.root)
        with explained(f"cannot reach {self.store.url}"):
            self.missed = deque(missed_ticks(self.store, self.schedule, now))
        self.handled = now
        self.driver: Driver | None = None

    def step(self, now: datetime) -> float:
        """Starts a tick that is due. Gives the seconds until the next look."""
        if self.missed and not self._is_busy():
            self._start(self.missed.popleft())
        for tick in self.schedule.between(self.handled, now):
            if not self._is_busy():
                self._start(tick)
            elif self.job.overlap == "refuse":
                self._skip(tick)
            else:
                break
            self.handled = tick
        ahead = (next(self.schedule.after(now)) - now).total_seconds()
        return min(ahead, POLL_SECONDS if self._is_busy() else LONGEST_WAIT_SECONDS)

    def stop(self) -> None:
        """Asks the driver to finish what it has in flight."""
        if self.driver is not None:
            self.driver.terminate()

    def wait(self) -> None:
        if self.driver is not None:
            self.driver.wait()

    def _is_busy(self) -> bool:
        if self.driver is not None and (code := self.driver.poll()) is not None:
            log.log(
                logging.WARNING if code else logging.INFO, "%s: the tick ended with exit code %d", self.job.name, code
            )
            self.driver = None
        return self.driver is not None

    def _start(self, tick: datetime) -> None:
        log.info("%s: tick %s", self.job.name, tick.astimezone(self.job.zone).isoformat())
        self.driver = self.start(tick)

    def _skip(self, tick: datetime) -> None:
        reason = "the tick before is still at work"
        log.warning("%s: tick %s is left out: %s", self.job.name, tick.isoformat(), reason)
        try:
            with explained(f"cannot reach {self.store.url}"):
                skip_tick(self.job, self.store, tick_text(tick), reason)
        except UserError as error:
            log.error("%s: that is not in its history: %s", self.job.name, error)


def missed_ticks(store: Store, schedule: Schedule, now: datetime) -> list[datetime]:
    """The ticks to catch up with: those since the last one in the history, and that one too if it is unfinished. Empty
    if there is no history yet."""
    lease = last_lease(store)
    if lease is None or schedule.catch_up == "none":
        return []
    last = parse_tick(lease.tick) - (timedelta() if lease.finished else SECOND)
    skipped = next(read_skipped(store), None)
    if lease.finished and skipped is not None:
        last = max(last, parse_tick(skipped.tick))
    missed = list(schedule.between(last, now))
    return missed if schedule.catch_up == "all" else missed[-1:]


def serve(paths: Sequence[Path], jobs: Sequence[Job]) -> None:
    """Starts every tick of the jobs in these files until SIGTERM, SIGHUP or Ctrl-C. Then it waits for the drivers to
    drain.

    Raises:
        UserError: if two jobs have one root, or as `ScheduledJob` does.
    """
    if len({job.root for job in jobs}) < len(jobs):
        raise UserError("two of these jobs have the same root: give each one of its own")
    now = datetime.now(UTC)
    scheduled = [ScheduledJob(job, _starter(path), now) for path, job in zip(paths, jobs, strict=True)]
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stopping.set()

    for number in stop_signals():
        signal.signal(number, stop)
    while not stopping.wait(min(one.step(datetime.now(UTC)) for one in scheduled)):
        pass
    for one in scheduled:
        one.stop()
    for one in scheduled:
        one.wait()


def _starter(path: Path) -> Start:
    def start(tick: datetime) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "jobs", "jobs", "run", str(path), "--tick", tick.isoformat()]
        return subprocess.Popen(command, start_new_session=True)  # Ctrl-C is for the scheduler, which passes it on

    return start
