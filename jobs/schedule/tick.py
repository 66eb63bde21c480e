"""Does one tick of a job: takes the lease, handles signals, records how the tick ended and sends the notification.

Every record that counts is created if absent, in this order: the plan and the commits of the run, the version, the
record of the tick. Then the lease ends. If a driver dies between two of them, the next driver goes on with the tick
from what is there.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from types import FrameType
from typing import Any

from asyrp.errors import UserError
from jobs.runs.record import check_creates
from jobs.runs.run import EXIT_DRAINED, Display, exit_code_of, no_display
from jobs.runs.run_file import open_record
from jobs.schedule.next_version import NextVersion, TickResult, tick_text
from jobs.schedule.notify import notify
from jobs.spec.job import Job
from pipeline.datasets import leases
from pipeline.datasets.leases import DriverAtWork, Heartbeat, Lease
from pipeline.datasets.versions import run_name
from pipeline.engine.signals import stop_signals
from pipeline.run.progress import StateReader
from pipeline.storage.credentials import redacted
from pipeline.storage.failures import machine_failure
from pipeline.storage.records import read_as
from pipeline.storage.store import Store, explained

JOB = "job.json"
TICKS = "ticks"
FORMAT = 1
Handler = Callable[[int, FrameType | None], Any] | int | None


def open_job(job: Job) -> Store:
    """Opens the root of a job, and marks it with the name of the job.

    Raises:
        UserError: if another job has this root, or it cannot be written to.
    """
    store = Store(job.root)
    check_creates(store)
    with explained(f"cannot reach {store.url}"):
        store.create(JOB, json.dumps({"format": FORMAT, "name": job.name}).encode())
    name = read_job(store).name
    if name != job.name:
        raise UserError(f"the job at {store.url} is called {name}, not {job.name}: give another root, or that name")
    return store


def is_job(store: Store) -> bool:
    """Whether a root is that of a job."""
    return store.exists(JOB)


@dataclass(frozen=True)
class JobRecord:
    """The record at the root of a job."""

    format: int
    name: str


def read_job(store: Store) -> JobRecord:
    """The record at the root of a job, with its name.

    Raises:
        UserError: if there is no job at this root, a later version wrote it, or it cannot be reached.
    """
    absent = f"there is no job at {store.url}: it has no {JOB}, which its first tick writes"
    return open_record(store, JOB, absent).of(JobRecord, formats=[FORMAT])


def run_tick(job: Job, tick: datetime, display: Display = no_display) -> TickResult:
    """Does a tick, after the tick that the last driver left unfinished. A tick that is done is not done again.

    Call it in the main thread: on SIGTERM or Ctrl-C the shards in flight are finished, as in any run.

    Raises:
        UserError: for anything the user can mend. The history holds it too.
    """
    store, wanted = open_job(job), tick_text(tick)
    while True:
        if done := _result_of(store, wanted):
            return replace(done, message="it was done already")
        try:
            lease = leases.begin(store, wanted, wait=job.overlap == "queue")
        except DriverAtWork as other:
            if other.lease.tick == wanted:
                return TickResult(wanted, "skipped", message=str(other))
            return skip_tick(job, store, wanted, str(other))
        result = _do_tick(job, store, lease, display)
        if lease.tick == wanted or not result.is_finished:
            return result


def skip_tick(job: Job, store: Store, tick: str, reason: str) -> TickResult:
    """Records that a tick is left out, and sends the notification. The next tick edits its images."""
    leases.skip(store, tick, reason)
    result = TickResult(tick, "skipped", message=reason)
    _notify(job, result)
    return result


def _do_tick(job: Job, store: Store, lease: Lease, display: Display) -> TickResult:
    """Does the tick of a lease, and records how it ended."""

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def end(result: TickResult) -> None:
        heartbeat.end(result.is_finished, result.outcome, asdict(result))
        _notify(job, result)

    def shown(reader: StateReader) -> AbstractContextManager[None]:
        heartbeat.facts = {"run": run_name(store, reader.store.url)}
        return display(reader)

    signals = stop_signals()
    with _on_signals(signals, signal.SIG_IGN), Heartbeat(store, lease, stop) as heartbeat:
        try:
            with _on_signals(signals, _stop):
                result = _result_of(store, lease.tick) or NextVersion(job, store, lease.tick).make(shown)
            if result.is_done:
                store.create(_record_name(lease.tick), json.dumps(asdict(result), indent=1).encode())
        except (Stopped, KeyboardInterrupt, SystemExit):  # Ray turns a signal into SystemExit
            result = TickResult(lease.tick, "drained", EXIT_DRAINED)
        except Exception as error:
            message = redacted(machine_failure(error) or str(error) or type(error).__name__)
            end(TickResult(lease.tick, "failed", exit_code_of(error), message=message))
            raise
        end(result)
    return result


class Stopped(BaseException):
    """SIGTERM, SIGHUP or Ctrl-C came while nothing was computed. While a run computes, the engine handles signals and
    drains."""


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Stopped


@contextmanager
def _on_signals(numbers: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _notify(job: Job, result: TickResult) -> None:
    if job.notify is not None:
        notify(job.notify, {"job": job.name, "root": job.root, **asdict(result)})


def _result_of(store: Store, tick: str) -> TickResult | None:
    """How a tick ended; None if it is not done."""
    try:
        return read_as(store, _record_name(tick), TickResult)
    except FileNotFoundError:
        return None


def _record_name(tick: str) -> str:
    return f"{TICKS}/{tick}.json"
