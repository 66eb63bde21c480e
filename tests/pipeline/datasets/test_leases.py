"""Who may work on a job: one driver at a time, however they come and go."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.datasets import leases
from pipeline.datasets.leases import DriverAtWork, Heartbeat, ask_to_stop, begin, last_lease, read_leases
from pipeline.storage.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.02)
    return Store(str(tmp_path / "job"))


@pytest.fixture
def expires_soon(monkeypatch) -> None:
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.3)


def wait_for(event: threading.Event) -> None:
    assert event.wait(30)


def test_of_many_drivers_at_once_one_gets_the_lease_and_the_others_are_told_who_has_it(store):
    all_told = threading.Barrier(8, timeout=60)

    def compete(number: int) -> str:
        try:
            lease = begin(store, f"tick-{number}", wait=False)
        except DriverAtWork as other:
            all_told.wait()
            return other.lease.tick
        with Heartbeat(store, lease, lambda: None):
            all_told.wait()
        return lease.tick

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(compete, range(8)))
    [lease] = read_leases(store)
    assert told == {lease.tick}


def test_drivers_that_wait_get_the_lease_one_after_the_other(store):
    at_work = threading.Semaphore(1)

    def work(number: int) -> None:
        lease = begin(store, f"tick-{number}", wait=True)
        with Heartbeat(store, lease, lambda: None) as heartbeat:
            assert at_work.acquire(blocking=False), "two are at work"
            time.sleep(0.1)
            at_work.release()
            heartbeat.end(True, "succeeded", {})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert [lease.number for lease in read_leases(store)] == [4, 3, 2, 1]


@pytest.mark.usefixtures("expires_soon")
def test_the_lease_of_a_dead_driver_expires_and_the_next_goes_on_with_its_tick(store):
    dead = begin(store, "tick-1", wait=False)
    lease = begin(store, "tick-2", wait=False)
    assert (lease.number, lease.tick) == (dead.number + 1, "tick-1")
    with Heartbeat(store, lease, lambda: None) as heartbeat:
        heartbeat.end(True, "succeeded", {})
    assert begin(store, "tick-2", wait=False).tick == "tick-2"


def test_a_lease_that_ends_while_it_is_watched_is_free(store, monkeypatch):
    ending = Heartbeat(store, begin(store, "tick-1", wait=False), lambda: None)
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 60.0)
    with ThreadPoolExecutor() as pool, ending:
        waiting = pool.submit(begin, store, "tick-2", False)
        time.sleep(0.1)
        ending.end(True, "succeeded", {})
        assert waiting.result().tick == "tick-2"


def test_a_tick_that_was_stopped_is_gone_on_with(store):
    with Heartbeat(store, begin(store, "tick-1", wait=False), lambda: None) as heartbeat:
        heartbeat.end(False, "drained", {})
    assert begin(store, "tick-2", wait=False).tick == "tick-1"


@pytest.mark.usefixtures("expires_soon")
def test_a_driver_that_stood_still_finds_that_its_lease_has_passed_on_and_stops_and_ends_nothing(store):
    stopped = threading.Event()
    slept = begin(store, "tick-1", wait=False)
    other = begin(store, "tick-1", wait=False)
    with Heartbeat(store, slept, stopped.set) as heartbeat:
        wait_for(stopped)
        heartbeat.end(True, "failed", {})
    mine, its = read_leases(store)
    assert mine == other and its.outcome is None


def test_a_driver_is_asked_to_stop_from_anywhere_and_only_once(store):
    stopped: list[int] = []
    seen = threading.Event()
    with Heartbeat(store, begin(store, "tick-1", wait=False), lambda: (stopped.append(1), seen.set())) as heartbeat:
        ask_to_stop(Store(store.url), last_lease(store))
        wait_for(seen)
        time.sleep(0.3)
        heartbeat.end(False, "drained", {})
    assert stopped == [1]
    [lease] = read_leases(store)
    assert lease.outcome == "drained" and not lease.finished


def test_where_a_second_create_overwrites_the_one_who_lost_the_record_stops(store, monkeypatch):
    stopped = threading.Event()
    mine = begin(store, "tick-1", wait=False)
    monkeypatch.setattr(Store, "names", lambda *_: [])  # what a driver sees that looked just before
    monkeypatch.setattr(Store, "create", lambda self, name, data: self.write(name, data) or True)
    its = begin(store, "tick-2", wait=False)
    monkeypatch.undo()
    assert its.number == mine.number
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    with Heartbeat(store, mine, stopped.set):
        wait_for(stopped)
    assert last_lease(store) == its
