"""When schedules fire, also where the clock changes, and what the embedded scheduler makes of that."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyrp.errors import UserError
from jobs.schedule.next_version import parse_tick, tick_text
from jobs.schedule.serve import ScheduledJob, missed_ticks, serve
from jobs.spec.job import Job
from jobs.spec.schedule import SECOND, Schedule
from pipeline.datasets.leases import Heartbeat, begin, read_skipped, skip
from pipeline.storage.store import Store

BERLIN = ZoneInfo("Europe/Berlin")
SPRING, AUTUMN = datetime(2026, 3, 28, 12, tzinfo=BERLIN), datetime(2026, 10, 24, 12, tzinfo=BERLIN)


def schedule(cron: str, timezone: str = "UTC", **more: Any) -> Schedule:
    return Schedule.model_validate({"cron": cron, "timezone": timezone, **more})


def test_a_time_that_the_clock_skips_fires_as_soon_as_it_has_jumped_and_one_that_comes_twice_fires_once():
    nightly = schedule("30 2 * * *", "Europe/Berlin")
    assert [f"{tick:%d %H:%M}" for tick in islice(nightly.after(SPRING), 3)] == ["29 01:00", "30 00:30", "31 00:30"]
    assert [f"{tick:%d %H:%M}" for tick in islice(nightly.after(AUTUMN), 3)] == ["25 00:30", "26 01:30", "27 01:30"]


def test_an_interval_fires_evenly_while_the_clock_changes():
    for moment in (SPRING, AUTUMN):
        ticks = list(islice(schedule("*/30 * * * *", "Europe/Berlin").after(moment), 60))
        assert {b - a for a, b in pairwise(ticks)} == {timedelta(minutes=30)}


@settings(deadline=None, max_examples=400)
@given(
    cron=st.sampled_from(("30 2 * * *", "*/20 * * * *", "0 3 * * SUN", "15 1-4 * * *", "*/7 30 2 * * *", "0 0 L * *")),
    zone=st.sampled_from(("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")),
    day=st.sampled_from(
        ((2026, 3, 8), (2026, 3, 29), (2026, 4, 5), (2026, 7, 1), (2026, 10, 4), (2026, 10, 25), (2026, 11, 1))
    ),
    after=st.timedeltas(timedelta(days=-1), timedelta(days=1, hours=12)),
)
def test_the_last_tick_is_the_one_after_which_no_other_came(cron, zone, day, after):
    times, moment = schedule(cron, zone), datetime(*day, tzinfo=UTC) + after
    last = times.last(moment)
    assert last <= moment < next(times.after(moment))
    assert list(times.between(last, moment)) == []
    assert next(times.after(last - SECOND)) == last


@dataclass
class Process:
    """Stands in for the process of a tick."""

    code: int | None = None
    stopped: bool = False

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.stopped = True

    def wait(self) -> int:
        return 0


@dataclass
class Machine:
    """Starts no process, and notes which it was to start."""

    started: list[datetime] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    takes_long: bool = False

    def start(self, tick: datetime) -> Process:
        self.started.append(tick)
        self.processes.append(Process(None if self.takes_long else 0))
        return self.processes[-1]


@pytest.fixture
def job(tmp_path) -> Callable[..., Job]:
    def make(cron: str, timezone: str = "UTC", catch_up: str = "last", **more: Any) -> Job:
        times = {"cron": cron, "timezone": timezone, "catch_up": catch_up}
        run = {"source": "s3://nowhere/faces", "edits": ["glasses=1"]}
        return Job.model_validate({"name": "n", "root": str(tmp_path / "job"), "run": run, "schedule": times, **more})

    return make


def simulate(scheduled: ScheduledJob, start: datetime, until: datetime) -> None:
    """Let the clock go from one step of the scheduler to the next."""
    now = start
    while now < until:
        now += timedelta(seconds=max(scheduled.step(now), 0.001))


def test_the_scheduler_starts_every_tick_on_time_and_once_while_the_clock_changes(job):
    for moment in (SPRING, AUTUMN):
        machine, begun = Machine(), moment.astimezone(UTC)
        nightly = job("30 2 * * *", "Europe/Berlin")
        simulate(ScheduledJob(nightly, machine.start, begun), begun, begun + timedelta(days=3))
        assert machine.started == list(nightly.schedule.between(begun, begun + timedelta(days=3)))
        assert len(machine.started) == 3


def test_a_tick_that_comes_too_early_is_left_out_on_the_record_or_waits_as_the_job_says(job):
    begun = datetime(2026, 5, 1, tzinfo=UTC)
    for overlap, expected in {"refuse": [2, 8], "queue": [2, 4, 6, 8]}.items():
        machine, often = Machine(takes_long=True), job("*/2 * * * * *", overlap=overlap)
        scheduled = ScheduledJob(often, machine.start, begun)
        simulate(scheduled, begun, begun + timedelta(seconds=7))
        assert [tick.second for tick in machine.started] == [2]
        machine.takes_long, machine.processes[0].code = False, 0
        simulate(scheduled, begun + timedelta(seconds=7), begun + timedelta(seconds=9))
        assert [tick.second for tick in machine.started] == expected
        left_out = {parse_tick(skipped.tick).second for skipped in read_skipped(Store(often.root))}
        assert left_out == ({4, 6} if overlap == "refuse" else left_out)
    scheduled.stop()


def end_tick(store: Store, tick: datetime, finished: bool) -> None:
    lease = begin(store, tick_text(tick), wait=False)
    with Heartbeat(store, lease, lambda: None) as heartbeat:
        heartbeat.end(finished, "succeeded" if finished else "drained", {})


def test_what_went_by_is_caught_up_with_as_the_job_says(job):
    store, noon = Store(job("0 * * * *").root), datetime(2026, 5, 1, 12, tzinfo=UTC)
    hourly = {kind: schedule("0 * * * *", catch_up=kind) for kind in ("none", "last", "all")}
    now = noon + timedelta(hours=3, minutes=30)
    assert all(missed_ticks(store, times, now) == [] for times in hourly.values()), "there is no history yet"
    end_tick(store, noon, finished=True)
    missed = {kind: [tick.hour for tick in missed_ticks(store, times, now)] for kind, times in hourly.items()}
    assert missed == {"none": [], "last": [15], "all": [13, 14, 15]}
    skip(store, tick_text(noon + timedelta(hours=1)), "another was at work")
    assert [tick.hour for tick in missed_ticks(store, hourly["all"], now)] == [14, 15]
    end_tick(store, noon + timedelta(hours=3), finished=False)
    assert [tick.hour for tick in missed_ticks(store, hourly["all"], now)] == [15], "it is unfinished"


def test_all_missed_ticks_are_started_one_after_the_other(job):
    hourly, noon = job("0 * * * *", catch_up="all"), datetime(2026, 5, 1, 12, tzinfo=UTC)
    end_tick(Store(hourly.root), noon, finished=True)
    machine, now = Machine(), noon + timedelta(hours=3, minutes=30)
    simulate(ScheduledJob(hourly, machine.start, now), now, now + timedelta(minutes=31))
    assert [tick.hour for tick in machine.started] == [13, 14, 15, 16]


def test_jobs_that_cannot_be_scheduled_are_refused(job, tmp_path):
    unscheduled = job("0 * * * *").model_copy(update={"schedule": None})
    with pytest.raises(UserError, match="the job n has no schedule"):
        ScheduledJob(unscheduled, Machine().start, SPRING)
    with pytest.raises(UserError, match="two of these jobs have the same root"):
        serve([tmp_path] * 2, [job("0 * * * *")] * 2)
