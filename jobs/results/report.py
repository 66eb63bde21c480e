"""Reads all that a report tells of a run, from the storage of the run alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from asyrp.errors import UserError
from jobs.runs.record import recorded_stages
from jobs.runs.run import SUMMARY
from jobs.runs.run_file import read_run
from jobs.runs.session import read_state
from pipeline.results.highlights import highlights
from pipeline.results.rows import ResultReader, Results
from pipeline.results.summaries import TimeSpent, time_spent
from pipeline.results.thumbnails import Pair, Thumbnails
from pipeline.run.additions import read_additions
from pipeline.run.commit import committed
from pipeline.run.progress import DISPENSABLE, RunState, read_heartbeats
from pipeline.storage.credentials import redacted
from pipeline.storage.records import read_checked
from pipeline.storage.store import Store
from pipeline.upkeep.verify import counted

PICTURED_ROWS = 600
PICTURE_BYTES = 6_000_000
"""The most bytes of all pictures of a report together. With 100,000 rows it is still a file that can be mailed."""


@dataclass(frozen=True)
class _Session:
    """The fields of the summary of a session that a report reads."""

    tripped: str | None = None
    drained: bool = False
    quarantined: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Summary:
    session: _Session | None


@dataclass(frozen=True)
class QuarantinedShard:
    """A shard that was given up, and the reason."""

    stage: str
    shard: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run at one moment. `images` is the number of images of its source, edited or not. `pictures` are by the number
    of their row in `results`, those that matter most first."""

    root: str
    made_at: datetime
    record: Mapping[str, Any]
    state: RunState
    verdict: str
    images: int
    quarantined: Sequence[QuarantinedShard]
    time_spent: TimeSpent
    results: Results
    pictures: Mapping[int, Pair]


class ReportReader:
    """Reads the report of a run, also while it is at work. Each commit is read once."""

    def __init__(self, store: Store) -> None:
        """Raises UserError if there is no run, or the run edits no images."""
        self.store, self.record = store, read_run(store)
        stages = [stage for stage in recorded_stages(self.record) if stage.writes == "images"]
        if not stages:
            raise UserError(f"the run at {store.url} edited no images: there is nothing to report")
        identity = self.record["identity"]
        self._results = ResultReader(store, stages)
        self._thumbnails = Thumbnails(store, identity["image_size"], identity["fit"])

    def read(self) -> Report:
        """The run as it is now."""
        state, session, additions = read_state(self.store), self._last_session(), read_additions(self.store)
        results = self._results.read()
        pictures = self._thumbnails.pairs(results, highlights(results, PICTURED_ROWS))
        return Report(
            root=redacted(self.store.url),
            made_at=datetime.now(UTC),
            record=self.record,
            state=state,
            verdict=verdict(state, session),
            images=self.record["plan"]["images"] + sum(more.images for more in additions if more.kind == "extend"),
            quarantined=self._quarantined(session),
            time_spent=time_spent(read_heartbeats(self.store)),
            results=results,
            pictures=within(pictures, PICTURE_BYTES),
        )

    def _quarantined(self, session: Mapping[str, Any]) -> list[QuarantinedShard]:
        """The shards that the last session gave up and that are still not committed."""
        given_up = [QuarantinedShard(*unit) for unit in session.get("quarantined", ())]
        done = {stage: committed(self.store, stage) for stage in {unit.stage for unit in given_up}}
        return [unit for unit in given_up if unit.shard not in done[unit.stage]]

    def _last_session(self) -> dict[str, Any]:
        """The summary of the last session that had something to do; empty if no session has ended."""
        try:
            return read_checked(self.store, SUMMARY, _Summary, remedy=DISPENSABLE)["session"] or {}
        except FileNotFoundError:
            return {}


def verdict(state: RunState, session: Mapping[str, Any]) -> str:
    """A phrase that says whether a run is complete, at work, or why it stopped."""
    if state.complete:
        return "complete"
    if state.actors:
        return f"at work, with {counted(len(state.actors), 'actor')}"
    if session.get("tripped"):
        return f"stopped: {session['tripped']}"
    if session.get("drained"):
        return "stopped on request: the same command goes on from here"
    if session.get("quarantined"):
        return "finished with quarantined shards"
    return "not complete, and nothing is at work on it"


def within(pictures: Mapping[int, Pair], most: int) -> dict[int, Pair]:
    """The first pictures, as many as fit into `most` bytes."""
    kept: dict[int, Pair] = {}
    for row, pair in pictures.items():
        most -= sum(len(thumbnail.webp or b"") for thumbnail in pair)
        if most < 0:
            break
        kept[row] = pair
    return kept
