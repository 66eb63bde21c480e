"""The leases of a job. They say on storage which driver is at work on it, which were, and how their work ended.

A lease is the right of one driver to work on one tick of a job. Its record is created under the next number if no other
has that number, so only one of several drivers gets it. The driver rewrites the record every few seconds, and once more
at the end. All records in their order are the history of the job.

No clock is compared with another. A driver that finds a lease without an end watches it. If the lease is renewed, its
driver is alive. If it is not renewed for EXPIRY_SECONDS of the watcher's own clock, its driver counts as gone and the
next lease may begin. A driver that had only stood still finds that later lease at its next heartbeat and stops. Its
work until then does no harm, because the records that count are never overwritten: they are created if absent.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.records import numbered, read_as, record_name
from pipeline.storage.store import Store, os_errors

log = logging.getLogger(__name__)

FOLDER = "leases"
DIGITS = 8
SKIPPED = "skipped"
TICK_RECORD = re.compile(r"[A-Za-z0-9-]+\.json")
"""The name of a record of a tick."""

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0
POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The record of a lease. Times are ISO texts, for people. `finished` is True if the tick has come to its end, False
    if the next driver goes on with it. `outcome` is None until the lease has ended."""

    number: int
    driver: str
    host: str
    pid: int
    tick: str
    began_at: str
    beat_at: str
    beat: int = 0
    ended_at: str | None = None
    finished: bool = False
    outcome: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str | None:
        """The name of the run that its tick made or makes, as versions have it; None if none is noted."""
        run = self.facts.get("run")
        return run if isinstance(run, str) and run else None


@dataclass(frozen=True)
class SkippedTick:
    """A tick that was left out because another driver was at work, and the reason in words."""

    tick: str
    at: str
    reason: str


class DriverAtWork(Exception):
    """Another driver holds the lease."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"{lease.host} (process {lease.pid}) is at work on tick {lease.tick}")
        self.lease = lease


def read_leases(store: Store) -> Iterator[Lease]:
    """All leases, the newest first."""
    return read_ahead(lambda number: _read(store, number), _numbers(store))


def last_lease(store: Store) -> Lease | None:
    """The newest lease; None if there never was one."""
    numbers = _numbers(store)
    return _read(store, numbers[0]) if numbers else None


def begin(store: Store, tick: str, wait: bool) -> Lease:
    """Begins a lease for a tick, or for the tick that the last driver left unfinished.

    If another driver is at work, this waits for it with `wait`. If that driver shows no sign of life, its lease
    expires.

    Raises:
        DriverAtWork: if another driver is at work, and `wait` is False.
    """
    expired: set[int] = set()
    while True:
        before = last_lease(store)
        if before is not None and before.ended_at is None and before.number not in expired:
            changed = _watch(store, before)
            if changed is None:
                expired.add(before.number)
            elif changed.ended_at is None and not wait:
                raise DriverAtWork(changed)
            continue
        number, due = (before.number, tick if before.finished else before.tick) if before else (0, tick)
        if lease := _create(store, number + 1, due):
            return lease


def skip(store: Store, tick: str, reason: str) -> None:
    """Records that a tick was left out."""
    store.create(f"{SKIPPED}/{tick}.json", json.dumps(asdict(SkippedTick(tick, _now(), reason))).encode())


def read_skipped(store: Store) -> Iterator[SkippedTick]:
    """The ticks that were left out, the latest first."""
    names = sorted(filter(TICK_RECORD.fullmatch, store.names(SKIPPED)), reverse=True)
    return read_ahead(lambda name: read_as(store, f"{SKIPPED}/{name}", SkippedTick), names)


def ask_to_stop(store: Store, lease: Lease) -> None:
    """Asks the driver of a lease to stop. It sees that at its next heartbeat."""
    store.create(f"{FOLDER}/{_stop_name(lease.number)}", b"stop")


class Heartbeat(AbstractContextManager["Heartbeat"]):
    """Renews a lease in a thread until it is ended. Calls `stop` once if the driver is to stop.

    The record holds `facts`, on the driver's work, from the next heartbeat on.
    """

    def __init__(self, store: Store, lease: Lease, stop: Callable[[], None]) -> None:
        self.store, self.lease, self.stop = store, lease, stop
        self.facts: dict[str, Any] = {}
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()

    def end(self, finished: bool, outcome: str, facts: dict[str, Any]) -> None:
        """Records the end of the lease, unless another driver has taken over."""
        self._finished.set()
        self._thread.join()
        if not self._is_lost(_numbers(self.store)):
            self.lease = replace(self.lease, ended_at=_now(), finished=finished, outcome=outcome, facts=facts)
            _write(self.store, self.lease)

    def _beat(self) -> None:
        stopped = False
        while not self._finished.wait(HEARTBEAT_SECONDS):
            try:
                with os_errors():
                    reason = self._renew()
            except OSError as error:
                log.warning("the heartbeat at %s failed: %s", self.store.url, error)
                continue
            if reason and not stopped:
                log.warning("stopping: %s", reason)
                stopped = True
                self.stop()

    def _renew(self) -> str | None:
        """Renews the lease if it is still this driver's. Gives the reason if the driver is to stop, else None."""
        names = list(self.store.names(FOLDER))
        if self._is_lost(_numbers_in(names)):
            return "another driver took over"
        self.lease = replace(self.lease, beat=self.lease.beat + 1, beat_at=_now(), facts=self.facts)
        _write(self.store, self.lease)
        return "it was asked for" if _stop_name(self.lease.number) in names else None

    def _is_lost(self, numbers: list[int]) -> bool:
        """Whether a later lease has begun, or another driver has this number (on a store that ignores
        create-if-absent)."""
        mine = self.lease.number
        return numbers[0] != mine or _read(self.store, mine).driver != self.lease.driver


def _watch(store: Store, lease: Lease) -> Lease | None:
    """Waits until a lease is renewed or ended, and gives it; None if neither comes within EXPIRY_SECONDS."""
    deadline = time.monotonic() + EXPIRY_SECONDS
    while (now := _read(store, lease.number)) == lease:
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_SECONDS)
    return now


def _create(store: Store, number: int, tick: str) -> Lease | None:
    """A new lease; None if another driver has this number."""
    now = _now()
    lease = Lease(
        number=number,
        driver=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        tick=tick,
        began_at=now,
        beat_at=now,
    )
    created = store.create(_name(number), _as_json(lease))
    return lease if created and _read(store, number).driver == lease.driver else None


def _numbers(store: Store) -> list[int]:
    """The numbers of all leases, the newest first."""
    return _numbers_in(store.names(FOLDER))


def _numbers_in(names: Iterable[str]) -> list[int]:
    return numbered(names, DIGITS)[::-1]


def _read(store: Store, number: int) -> Lease:
    return read_as(store, _name(number), Lease)


def _write(store: Store, lease: Lease) -> None:
    store.write(_name(lease.number), _as_json(lease))


def _as_json(lease: Lease) -> bytes:
    return json.dumps(asdict(lease), indent=1).encode()


def _name(number: int) -> str:
    return f"{FOLDER}/{record_name(number, DIGITS)}"


def _stop_name(number: int) -> str:
    """The name of the request to stop. It is in the folder of the leases, so one listing shows both."""
    return f"{number:0{DIGITS}d}.stop"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
