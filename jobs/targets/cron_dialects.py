"""Cron expressions as other schedulers read them.

What an expression says is taken from cronsim, which decides when a job runs here. A scheduler that would read it in
another way gets it in words that mean the same there; where there are none it is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from cronsim import CronSim

from asyrp.errors import UserError
from jobs.spec.schedule import Schedule

DAYS = frozenset(range(1, 32))
WEEKDAYS = frozenset(range(7))
WEEKDAY_NAMES = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


@dataclass(frozen=True)
class Times:
    """When a cron expression fires: sets of numbers, Sunday is 0. A day counts if day of month and weekday are met, or
    either with `either_day`."""

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    @classmethod
    def of(cls, cron: str, target: str) -> "Times":
        """Raises UserError for days that count from the end of the month or by weeks, which only cronsim knows."""
        sim = CronSim(cron, datetime.now(UTC))
        days = frozenset(sim.days)
        weekdays = frozenset(day % 7 for day in sim.weekdays if isinstance(day, int))
        if not days <= DAYS or any(isinstance(day, tuple) for day in sim.weekdays):
            raise UserError(
                f"schedule.cron: '{cron}' has a day with L or #, which {target} does not know: write days as numbers, "
                "or let asyrp jobs schedule serve start the job"
            )
        either_day = not sim.day_and
        if either_day and (days == DAYS or weekdays == WEEKDAYS):
            days, weekdays, either_day = DAYS, WEEKDAYS, False
        return cls(
            frozenset(sim.seconds),
            frozenset(sim.minutes),
            frozenset(sim.hours),
            days,
            frozenset(sim.months),
            weekdays,
            either_day,
        )

    @property
    def has_both_days(self) -> bool:
        """Whether day of month and weekday both are restricted."""
        return self.days != DAYS and self.weekdays != WEEKDAYS


def five_fields(schedule: Schedule, target: str) -> str:
    """A schedule in the five fields that all cron-like schedulers read alike: numbers, lists and ranges, Sunday is 0.

    Raises:
        UserError: if it says seconds, days from the end of the month or by weeks, or days and weekdays of which both
            must be met: cron knows these by a field that begins with '*', and others take either.
    """
    times = Times.of(schedule.cron, target)
    if times.seconds != {0}:
        raise UserError(
            f"schedule.cron: '{schedule.cron}' has seconds, which {target} does not know: leave the first field out, "
            "or use --target systemd or asyrp jobs schedule serve"
        )
    if times.has_both_days and not times.either_day:
        raise UserError(
            f"schedule.cron: '{schedule.cron}' has days of which weekday and day of the month must both be met, and "
            f"{target} may run on either: restrict one of them, or use --target systemd or asyrp jobs schedule serve"
        )
    fields = (times.minutes, 60), (times.hours, 24), (times.days, 31), (times.months, 12), (times.weekdays, 7)
    return " ".join("*" if len(field) == size else _ranges(field, "-") for field, size in fields)


def on_calendar(schedule: Schedule) -> list[str]:
    """A schedule as the calendar events of systemd, which fire at any of them (`man systemd.time`).

    Raises:
        UserError: if it says days from the end of the month or by weeks.
    """
    times = Times.of(schedule.cron, "systemd")
    weekdays = ",".join(WEEKDAY_NAMES[day] for day in sorted(times.weekdays)) + " "
    days = _ranges(times.days, "..")
    if not times.has_both_days:
        pairs = [("" if times.weekdays == WEEKDAYS else weekdays, "*" if times.days == DAYS else days)]
    elif times.either_day:
        pairs = [(weekdays, "*"), ("", days)]
    else:
        pairs = [(weekdays, days)]
    fields = (times.hours, 24), (times.minutes, 60), (times.seconds, 60)
    clock = ":".join("*" if len(field) == size else _ranges(field, "..") for field, size in fields)
    months = "*" if len(times.months) == 12 else _ranges(times.months, "..")
    return [f"{weekday}*-{months}-{day} {clock} {schedule.timezone}" for weekday, day in pairs]


def _ranges(numbers: Iterable[int], to: str) -> str:
    """1-3,7: numbers that follow each other as ranges."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(numbers)), key=lambda counted: counted[1] - counted[0])
    ]
    return ",".join(f"{run[0]}{to}{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
