"""The state of a run, read from its storage alone: from any machine, during the run or after it."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.additions import read_additions
from pipeline.commit import committed, read_commit
from pipeline.storage import Store

STALE_SECONDS = 30.0


@dataclass
class StageState:
    """How far one stage is. `rows` counts the manifest rows of committed shards by status."""

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
    """All stages of a run in order, and the actors at work."""

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
        """Images committed, over all stages."""
        return sum(stage.images_done for stage in self.stages.values())

    @property
    def images_through(self) -> int:
        """Images committed or through in a shard that is still in flight, over all stages."""
        return self.images_done + sum(stage.images_in_flight for stage in self.stages.values())


class StateReader:
    """Reads the state again and again; a commit, being immutable, is read once."""

    def __init__(self, store: Store, stages: Mapping[str, tuple[int, int]]) -> None:
        """`stages` gives the shards and images of each stage by name."""
        self.store = store
        self.stages = {name: StageState(shards, images) for name, (shards, images) in stages.items()}
        self._seen: set[tuple[str, int]] = set()
        self._settled: set[tuple[str, int]] = set()

    def read(self) -> RunState:
        for name, state in self.stages.items():
            for shard in sorted(committed(self.store, name)):
                if (name, shard) not in self._seen:
                    self._add(state, name, shard)
            state.images_in_flight = 0
        self._settle_retries()
        actors = [actor for actor in read_heartbeats(self.store) if is_at_work(actor)]
        for actor in actors:
            for flight in actor["in_flight"]:
                if (flight["stage"], flight["shard"]) not in self._seen and flight["stage"] in self.stages:
                    self.stages[flight["stage"]].images_in_flight += flight["done"]
        return RunState(self.stages, actors)

    def _settle_retries(self) -> None:
        """Take out the rows that a retry has replaced, once it is through."""
        for addition in read_additions(self.store):
            for name, statuses in addition.replaces.items():
                through = all((name, shard) in self._seen for shard in addition.shard_ids)
                if through and (name, addition.number) not in self._settled:
                    self._settled.add((name, addition.number))
                    self.stages[name].rows = self.stages[name].rows - Counter(statuses)

    def _add(self, state: StageState, name: str, shard: int) -> None:
        commit = read_commit(self.store, name, shard)
        self._seen.add((name, shard))
        state.shards_done += 1
        state.images_done += commit.images
        state.rows.update(commit.statuses)


def is_at_work(heartbeat: dict[str, Any]) -> bool:
    return not heartbeat["closed"] and time.time() - heartbeat["updated"] < STALE_SECONDS


def read_heartbeats(store: Store) -> list[dict[str, Any]]:
    """The last heartbeat of every actor that ever worked on the run."""
    return [json.loads(store.read(f"progress/{name}")) for name in sorted(store.names("progress"))]
