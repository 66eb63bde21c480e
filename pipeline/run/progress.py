"""Reads the state of a run from its storage alone. It works on any machine, during the run or after it."""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from pipeline.run.additions import Addition, read_additions, replaced_rows
from pipeline.run.commit import Commit, committed, read_commit
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.records import Count, Seconds, ShardCount, read_as
from pipeline.storage.store import Store

FOLDER = "progress"
STALE_SECONDS = 30.0
DISPENSABLE = "delete it, the run does without"
TALLY = "report/tally.json"

DEVICE_TIME = {"device": "device", "reader": "wait_for_reader", "writer": "wait_for_writer"}
"""For each thing that a device thread does or waits for, the name under which a heartbeat counts its seconds."""


@dataclass(frozen=True)
class Flight:
    """A shard that an actor has in flight, with the number of its images that are done."""

    stage: str
    shard: ShardCount
    done: Count = 0


@dataclass(frozen=True)
class Heartbeat:
    """The last words of an actor. Times are in POSIX seconds, by the clock of the actor."""

    closed: bool
    updated: Seconds
    in_flight: list[Flight]
    actor: str = ""
    host: str = ""
    pid: int = 0
    started: Seconds = 0.0
    batch_size: Count = 0
    images: Count = 0
    statuses: dict[str, Count] = field(default_factory=dict)
    seconds: dict[str, Seconds] = field(default_factory=dict)


@dataclass
class StageState:
    """The progress of one stage. `rows` counts the manifest rows of committed shards by status."""

    shards: int
    images: int
    shards_done: int = 0
    images_done: int = 0
    images_in_flight: int = 0
    rows: Counter[str] = field(default_factory=Counter)

    @property
    def complete(self) -> bool:
        return self.shards_done == self.shards


@dataclass
class RunState:
    """All stages of a run in order, and the heartbeats of the actors at work."""

    stages: dict[str, StageState]
    actors: list[dict[str, Any]]

    @property
    def complete(self) -> bool:
        return all(stage.complete for stage in self.stages.values())

    @property
    def images(self) -> int:
        return sum(stage.images for stage in self.stages.values())

    @property
    def images_done(self) -> int:
        """The number of committed images, over all stages."""
        return sum(stage.images_done for stage in self.stages.values())

    @property
    def images_through(self) -> int:
        """The number of images that are committed, or finished in a shard that is not, over all stages."""
        return self.images_done + sum(stage.images_in_flight for stage in self.stages.values())


@dataclass
class StageTally:
    """The sums over the commits of one stage. Commits are immutable, so each is read once."""

    shards: set[ShardCount] = field(default_factory=set)
    images: Count = 0
    rows: Counter[str] = field(default_factory=Counter)

    def add(self, commit: Commit) -> None:
        self.shards.add(commit.shard)
        self.images += commit.images
        self.rows.update(commit.statuses)


class StateReader:
    """Reads the state repeatedly. A commit is read once, or never if an earlier reader has stored its tally."""

    def __init__(self, store: Store, stages: Mapping[str, tuple[int, int]]) -> None:
        """`stages` gives the shards and images of each stage by name."""
        self.store, self.stages = store, stages
        self._tallies: dict[str, StageTally] = {}

    def read(self) -> RunState:
        kept = self._kept_tallies() if not self._tallies else {}
        for name in self.stages:
            done = committed(self.store, name)
            # Somebody may have deleted commits to redo their shards. A tally that counts such a shard is void.
            tally = self._tallies.get(name) or kept.get(name) or StageTally()
            self._tallies[name] = tally = tally if tally.shards <= done else StageTally()
            for commit in read_ahead(partial(read_commit, self.store, name), sorted(done - tally.shards)):
                tally.add(commit)
        actors = [actor for actor in read_heartbeats(self.store) if is_at_work(actor)]
        additions = read_additions(self.store)
        return RunState({name: self._state(name, actors, additions) for name in self.stages}, actors)

    def keep(self) -> None:
        """Store the tallies, so that the next reader need not read every commit again."""
        tallies = {
            name: {"shards": sorted(tally.shards), "images": tally.images, "rows": tally.rows}
            for name, tally in self._tallies.items()
        }
        self.store.write(TALLY, json.dumps(tallies).encode())

    def _kept_tallies(self) -> dict[str, StageTally]:
        try:
            return read_as(self.store, TALLY, dict[str, StageTally], remedy=DISPENSABLE)
        except FileNotFoundError:
            return {}

    def _state(self, name: str, actors: Sequence[dict[str, Any]], additions: Sequence[Addition]) -> StageState:
        tally = self._tallies[name]
        in_flight = sum(
            flight["done"]
            for actor in actors
            for flight in actor["in_flight"]
            if flight["stage"] == name and flight["shard"] not in tally.shards
        )
        shards, images = self.stages[name]
        return StageState(
            shards,
            images,
            shards_done=len(tally.shards),
            images_done=tally.images,
            images_in_flight=in_flight,
            rows=tally.rows - replaced_rows(additions, name, tally.shards),
        )


def device_seconds(seconds: Mapping[str, float]) -> float:
    """The seconds for which a device was held, busy or waiting, given the seconds of a heartbeat."""
    return sum(seconds.get(name, 0.0) for name in DEVICE_TIME.values())


def device_time(seconds: Mapping[str, float]) -> dict[str, float]:
    """The shares of `device_seconds` by activity, of which the largest bounds the run. Empty if nothing was done."""
    total = device_seconds(seconds)
    return {bound: seconds.get(name, 0.0) / total for bound, name in DEVICE_TIME.items()} if total else {}


def is_at_work(heartbeat: dict[str, Any]) -> bool:
    """Whether an actor is not closed and its heartbeat is recent."""
    return not heartbeat["closed"] and time.time() - heartbeat["updated"] < STALE_SECONDS


def read_heartbeats(store: Store) -> list[dict[str, Any]]:
    """The last heartbeat of every actor that has ever worked on the run, as JSON with the fields of `Heartbeat`.

    Raises:
        DamagedRecord: if a file is no heartbeat.
    """
    return [
        asdict(read_as(store, f"{FOLDER}/{name}", Heartbeat, remedy=DISPENSABLE))
        for name in sorted(filter(is_heartbeat, store.names(FOLDER)))
    ]


def is_heartbeat(name: str) -> bool:
    """Whether a file of the folder has the name of a heartbeat: the name of an actor."""
    return re.fullmatch(r"\w[\w.-]*\.json", name) is not None
