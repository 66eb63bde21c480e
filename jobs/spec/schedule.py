"""Finds the ticks of a schedule: a cron expression in a time zone, read as Debian's cron reads it.

Ticks are UTC. A time of day that the clock skips in spring fires as soon as the clock has jumped. A time that comes
twice in autumn fires the first time. In an expression of six fields the first field is seconds, and times are taken as
the clock shows them: a time that the clock skips does not fire, and a time that it shows twice fires twice.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import dropwhile, takewhile
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, Field, field_validator

from jobs.spec.mistakes import CHECKED

SECOND = timedelta(seconds=1)
TWICE = timedelta(hours=2)
"""Longer than the time that a clock shows twice in autumn."""

CatchUp = Literal["none", "last", "all"]


class Schedule(BaseModel):
    """When a job is to run."""

    model_config = CHECKED

    cron: str = Field(description="minute hour day month weekday; with six fields the first is seconds")
    timezone: str = Field("UTC", description="whose clock the times are of, such as Europe/Berlin")
    catch_up: CatchUp = Field(
        "last", description="of the ticks that went by while no scheduler was there: none, the last or all of them"
    )

    @field_validator("cron")
    @classmethod
    def _cron_fires(cls, text: str) -> str:
        try:
            next(CronSim(text, datetime.now(UTC)))
        except CronSimError as error:
            reason = f"{error}: write minute hour day month weekday".lower()
            raise ValueError(f"'{text}' is no schedule: {reason}, as in '30 2 * * *'") from error
        except StopIteration:
            raise ValueError(f"'{text}' never comes") from None
        return text

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (OSError, ValueError) as error:  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(f"'{name}' is no time zone: write one as Europe/Berlin") from error
        except KeyError:
            raise ValueError(f"'{name}' is no time zone: write one as Europe/Berlin") from None
        return name

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The ticks after a moment, without end."""
        return dropwhile(lambda tick: tick <= moment, self._ticks(moment))

    def between(self, moment: datetime, until: datetime) -> Iterator[datetime]:
        """The ticks after `moment` and not after `until`."""
        return takewhile(lambda tick: tick <= until, self.after(moment))

    def last(self, moment: datetime) -> datetime:
        """The last tick that is not after a moment."""
        return next(tick for tick in self._ticks(moment + TWICE, reverse=True) if tick <= moment)

    def _ticks(self, moment: datetime, reverse: bool = False) -> Iterator[datetime]:
        """The ticks from a moment on, or backwards. In an hour that comes twice cronsim begins with the first time it
        came."""
        return (tick.astimezone(UTC) for tick in CronSim(self.cron, moment.astimezone(self.zone), reverse))
