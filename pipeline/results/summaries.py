"""Adds up the rows of a run and its heartbeats."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.results.rows import Results
from pipeline.run.progress import device_time

BINS = 60


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The values of one metric: their number, mean and median, and the 5th (`low`) and 95th percentile (`high`)."""

    count: int
    mean: float
    low: float
    median: float
    high: float

    @classmethod
    def from_values(cls, values: NDArray[np.float32]) -> "Summary":
        """Summarises finite values [n], n > 0."""
        low, median, high = map(float, np.percentile(values, (5, 50, 95)))
        mean = float(values.mean(dtype=np.float64))
        return cls(count=len(values), mean=mean, low=low, median=median, high=high)


def counts(results: Results) -> dict[str, dict[str, int]]:
    """The number of rows by edit and status."""
    shape = len(results.edits.names), len(results.statuses.names)
    table = np.zeros(shape, np.int64)
    np.add.at(table, (results.edits.codes, results.statuses.codes), 1)
    return {
        edit: {status: int(n) for status, n in zip(results.statuses.names, row, strict=True)}
        for edit, row in zip(results.edits.names, table, strict=True)
    }


def summaries(results: Results) -> dict[str, dict[str, Summary]]:
    """The summaries of all metrics, by edit and metric; a metric without values is left out."""
    return {edit: dict(_of_edit(results, edit)) for edit in results.edits.names}


def _of_edit(results: Results, edit: str) -> Iterator[tuple[str, Summary]]:
    rows = results.edits.equals(edit)
    for name, values in results.metrics.items():
        measured = values[rows & np.isfinite(values)]
        if len(measured):
            yield name, Summary.from_values(measured)


class Throughput(TypedDict):
    """Rows committed per second, in BINS equal parts of the time from the first to the last commit; `times` are their
    middles, in POSIX seconds."""

    times: list[float]
    rates: list[float]


def throughput(results: Results) -> Throughput | None:
    """How fast rows were committed; None if there are no rows, or all were committed at once."""
    times = results.committed_ms / 1000
    if not len(times) or times.min() == times.max():
        return None
    rows, edges = np.histogram(times, BINS)
    return Throughput(times=((edges[:-1] + edges[1:]) / 2).tolist(), rates=(rows / np.diff(edges)).tolist())


@dataclass(frozen=True, kw_only=True)
class ActorTime:
    """The work of one actor: its image passes (an image counts in every stage), the seconds from its start to its last
    heartbeat, and the shares of its device's time, as `pipeline.run.progress.device_time` gives them."""

    name: str
    host: str
    passes: int
    seconds: float
    shares: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TimeSpent:
    """The time that a run has taken so far. `seconds` is the time with at least one actor at work, `actor_seconds` the
    sum over all actors. `shares` are those of the time of all devices."""

    seconds: float
    actor_seconds: float
    passes: int
    shares: Mapping[str, float]
    actors: Sequence[ActorTime]


def time_spent(heartbeats: Sequence[Mapping[str, Any]]) -> TimeSpent:
    """The time of a run, from the last heartbeat of every actor that ever worked on it."""
    actors = [
        ActorTime(
            name=beat["actor"],
            host=beat["host"],
            passes=beat["images"],
            seconds=beat["updated"] - beat["started"],
            shares=device_time(beat["seconds"]),
        )
        for beat in sorted(heartbeats, key=lambda beat: beat["started"])
    ]
    names = {name for beat in heartbeats for name in beat["seconds"]}
    spent = {name: sum(beat["seconds"].get(name, 0.0) for beat in heartbeats) for name in names}
    return TimeSpent(
        seconds=_covered((beat["started"], beat["updated"]) for beat in heartbeats),
        actor_seconds=sum(actor.seconds for actor in actors),
        passes=sum(actor.passes for actor in actors),
        shares=device_time(spent),
        actors=actors,
    )


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of time spans, each a start and an end."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
