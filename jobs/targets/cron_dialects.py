"""Translates cron expressions for other schedulers.

The meaning of an expression comes from cronsim, which decides when a job runs here. A scheduler that would read the
expression in another way gets one that means the same there; where there is none, the expression is refused.
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


@dataclass(frozen=True, kw_only=True)
class CronTimes:
    """When a cron expression fires, as sets of numbers; Sunday is 0. A day must match both day of month and weekday;
    with `either_day` one of them is enough."""

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    @classmethod
    def parse(cls, cron: str, target: str) -> "CronTimes":
        """Raises UserError if days count from the end of the month (L) or by weeks (#), which only cronsim knows."""
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
            seconds=frozenset(sim.seconds),
            minutes=frozenset(sim.minutes),
            hours=frozenset(sim.hours),
            days=days,
            months=frozenset(sim.months),
            weekdays=weekdays,
            either_day=either_day,
        )

    @property
    def has_both_days(self) -> bool:
        """Whether both day of month and weekday are restricted."""
        return self.days != DAYS and self.weekdays != WEEKDAYS


def five_fields(schedule: Schedule, target: str) -> str:
    """A schedule in the five fields that all cron-like schedulers read alike: numbers, lists and ranges, Sunday is 0.

    Raises:
        UserError: if it has seconds, or days from the end of the month or by weeks; if both its days and its weekdays
            must match. Debian's cron takes it so where one of the two fields begins with '*'; other crons take either.
    """
    times = CronTimes.parse(schedule.cron, target)
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
    """A schedule as calendar events of systemd (`man systemd.time`). A timer fires at each of them.

    Raises:
        UserError: if it has days from the end of the month or by weeks.
    """
    times = CronTimes.parse(schedule.cron, "systemd")
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
    """Numbers as a list in which consecutive ones are a range: 1-3,7."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(numbers)), key=lambda counted: counted[1] - counted[0])
    ]
    return ",".join(f"{run[0]}{to}{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
