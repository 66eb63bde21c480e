"""Adds up the rows of a run and its heartbeats."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.results.rows import Results
from pipeline.run.progress import device_time

BINS = 60


@dataclass(frozen=True)
class Summary:
    """The values of one metric: how many there are, their mean, median, and the 5th and 95th percentile."""

    count: int
    mean: float
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> "Summary":
        """Of finite values [n], n > 0."""
        low, median, high = np.percentile(values, (5, 50, 95))
        return cls(len(values), float(values.mean(dtype=np.float64)), float(low), float(median), float(high))


def counts(results: Results) -> dict[str, dict[str, int]]:
    """Rows by edit and by status."""
    shape = len(results.edits.names), len(results.statuses.names)
    table = np.zeros(shape, np.int64)
    np.add.at(table, (results.edits.codes, results.statuses.codes), 1)
    return {
        edit: {status: int(n) for status, n in zip(results.statuses.names, row, strict=True)}
        for edit, row in zip(results.edits.names, table, strict=True)
    }


def summaries(results: Results) -> dict[str, dict[str, Summary]]:
    """What was measured, by edit and metric; nothing where nothing was."""
    return {edit: dict(_of_edit(results, edit)) for edit in results.edits.names}


def _of_edit(results: Results, edit: str) -> Iterator[tuple[str, Summary]]:
    rows = results.edits.equals(edit)
    for name, values in results.metrics.items():
        measured = values[rows & np.isfinite(values)]
        if len(measured):
            yield name, Summary.of(measured)


class Throughput(TypedDict):
    """Rows committed per second, in BINS equal parts of the time from the first to the last commit; `times` are their
    middles, in POSIX seconds."""

    times: list[float]
    rates: list[float]


def throughput(results: Results) -> Throughput | None:
    """How fast rows were committed; None if they all were at once, or there are none."""
    times = results.committed_ms / 1000
    if not len(times) or times.min() == times.max():
        return None
    rows, edges = np.histogram(times, BINS)
    return Throughput(times=((edges[:-1] + edges[1:]) / 2).tolist(), rates=(rows / np.diff(edges)).tolist())


@dataclass(frozen=True)
class ActorTime:
    """What one actor did: images passes (an image is one in every stage), seconds from its start to its last heartbeat,
    and the shares of its device's time, as `pipeline.run.progress.device_time`."""

    name: str
    host: str
    images: int
    seconds: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """What a run has taken so far. `seconds` are those with at least one actor at work, `actor_seconds` count each."""

    seconds: float
    actor_seconds: float
    passes: int
    shares: Mapping[str, float]
    actors: Sequence[ActorTime]


def cost(heartbeats: Sequence[Mapping[str, Any]]) -> Cost:
    """The cost of a run, by the last heartbeat of every actor that ever worked on it."""
    actors = [
        ActorTime(beat["actor"], beat["host"], beat["images"], _age(beat), device_time(beat["seconds"]))
        for beat in sorted(heartbeats, key=lambda beat: beat["started"])
    ]
    names = {name for beat in heartbeats for name in beat["seconds"]}
    spent = {name: sum(beat["seconds"].get(name, 0.0) for beat in heartbeats) for name in names}
    covered = _covered((beat["started"], beat["updated"]) for beat in heartbeats)
    passes, total = sum(actor.images for actor in actors), sum(actor.seconds for actor in actors)
    return Cost(covered, total, passes, device_time(spent), actors)


def _age(beat: Mapping[str, Any]) -> float:
    return beat["updated"] - beat["started"]


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans of time."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
