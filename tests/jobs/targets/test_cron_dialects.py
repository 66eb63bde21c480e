"""Cron expressions in the words of other schedulers, held against what those schedulers make of them."""

import heapq
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from itertools import islice

import pytest
from croniter import croniter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asyrp.errors import UserError
from jobs.spec.schedule import Schedule
from jobs.targets.cron_dialects import five_fields, on_calendar

NOW = datetime(2026, 11, 21, 17, 40, tzinfo=UTC)
TICKS = 4
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


def field(low: int, high: int, *names: str) -> st.SearchStrategy[str]:
    """One field of a cron expression."""
    numbers = st.integers(low, high)
    pairs = st.tuples(numbers, numbers).map(sorted).map(lambda pair: f"{pair[0]}-{pair[1]}")
    stepped = st.tuples(st.one_of(st.just("*"), pairs), st.integers(1, 9)).map(lambda parts: f"{parts[0]}/{parts[1]}")
    one = st.one_of(numbers.map(str), pairs, stepped, *([st.sampled_from(names)] if names else []))
    return st.one_of(st.just("*"), st.lists(one, min_size=1, max_size=3).map(",".join))


expressions = st.tuples(
    field(0, 59), field(0, 23), field(1, 28), field(1, 12, "FEB", "dec"), field(0, 7, "SUN", "mon")
).map(" ".join)


def ticks(schedule: Schedule) -> list[datetime]:
    return list(islice(schedule.after(NOW), TICKS))


@settings(deadline=None, max_examples=150)
@given(expressions)
def test_five_fields_mean_the_same_to_a_cron_that_knows_only_those(expression):
    schedule = Schedule(cron=expression)
    try:
        fields = five_fields(schedule, "cron")
    except UserError:
        assume(False)
    assert re.fullmatch(r"([*]|[\d,-]+)( ([*]|[\d,-]+)){4}", fields), "numbers, ranges and lists only"
    assert "7" not in fields.split()[4]
    theirs = croniter(fields, NOW)
    assert [theirs.get_next(datetime) for _ in range(TICKS)] == ticks(schedule)


def elapses(event: str, zone: str = "UTC") -> list[datetime]:
    """When systemd fires, according to itself."""
    command = [
        "systemd-analyze",
        "calendar",
        f"--iterations={TICKS}",
        f"--base-time={NOW:%Y-%m-%d %H:%M:%S} UTC",
        event,
    ]
    told = subprocess.run(command, env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=True).stdout
    moments = re.findall(r"(?:Next elapse|Iter. #\d+): \w+ (\S+ \S+) UTC", told)
    return [datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in moments]


@needs_systemd
@settings(deadline=None, max_examples=25)
@given(expressions)
def test_the_events_of_systemd_are_the_ticks(expression):
    schedule = Schedule(cron=expression)
    fired = heapq.merge(*map(elapses, on_calendar(schedule)))
    assert list(islice(dict.fromkeys(fired), TICKS)) == ticks(schedule)


@needs_systemd
@pytest.mark.parametrize("cron", ["30 2 * * *", "*/20 30 4 * * MON-FRI", "0 0 */2 * MON", "0 0 1,15 * FRI"])
def test_systemd_knows_time_zones_seconds_and_days_of_which_both_must_be_met(cron):
    schedule = Schedule(cron=cron, timezone="America/New_York")
    fired = heapq.merge(*map(elapses, on_calendar(schedule)))
    assert list(islice(dict.fromkeys(fired), TICKS)) == ticks(schedule)


@pytest.mark.parametrize(
    ("cron", "reason"),
    [
        ("15 30 2 * * *", "has seconds"),
        ("0 0 */2 * MON", "weekday and day of the month must both be met"),
        ("0 0 L * *", "a day with L or #"),
        ("0 0 LW * *", "a day with L or #"),
        ("0 0 * * 5L", "a day with L or #"),
        ("0 0 * * MON#1", "a day with L or #"),
    ],
)
def test_what_others_do_not_know_or_read_otherwise_is_refused(cron, reason):
    with pytest.raises(UserError, match=reason):
        five_fields(Schedule(cron=cron), "Kubernetes")


@pytest.mark.parametrize("cron", ["0 0 L * *", "0 0 * * MON#1"])
def test_days_from_the_end_of_the_month_and_by_weeks_are_refused_for_systemd(cron):
    with pytest.raises(UserError, match="systemd does not know"):
        on_calendar(Schedule(cron=cron))
