"""Makes the next version of a data set: edits what is new or changed, keeps the rest, and drops what is gone."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain

from asyrp.digests import json_digest
from asyrp.errors import UserError
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.runs.run import EXIT_DRAINED, EXIT_QUARANTINE, Display, RunResult, exit_code, run
from jobs.spec.job import Job, Outcome
from pipeline.datasets.changes import Changes
from pipeline.datasets.known_images import KeySet
from pipeline.datasets.versions import Version, latest, publish, run_name, run_store, write_index
from pipeline.images.skipped import Skipped
from pipeline.run.additions import CurrentRows
from pipeline.run.manifest import Row
from pipeline.run.stage import FINAL
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store

EXIT_OK = 0
TICK_TEXT = "%Y%m%dT%H%M%SZ"
NOT_OF_RECIPE = {
    *("limit", "sample", "where", "image_column", "max_image_bytes"),
    *("inversions", "stages", "shard_size", "preview", "t_top"),
}
"""The settings of a run's identity that choose its images or say how they are processed, and change no image."""


@dataclass(frozen=True)
class TickResult:
    """How a tick ended. `changes` counts images by what became of them. `version` is the number of the version that the
    tick made, `run` the name of its run, as versions have it."""

    tick: str
    outcome: Outcome
    exit_code: int = EXIT_OK
    version: int | None = None
    run: str | None = None
    changes: dict[str, int] = field(default_factory=dict)
    message: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the tick has come to its end. If not, the next driver goes on with it."""
        return self.outcome != "drained"

    @property
    def is_done(self) -> bool:
        """Whether the tick need never be done again."""
        return self.outcome in ("succeeded", "unchanged", "quarantined")


def tick_text(tick: datetime) -> str:
    """A tick as names contain it: UTC, to the second."""
    return tick.astimezone(UTC).strftime(TICK_TEXT)


def parse_tick(text: str) -> datetime:
    """The tick that `tick_text` wrote."""
    return datetime.strptime(text, TICK_TEXT).replace(tzinfo=UTC)


class NextVersion:
    """Makes the version of a tick, from the source and the newest version.

    Raises:
        UserError: as `resolve` does.
    """

    def __init__(self, job: Job, store: Store, tick: str) -> None:
        self.job, self.store, self.tick = job, store, tick
        self.base = latest(store)
        resolved = resolve(job.run, self._newest_run() or store)
        self.recipe = json_digest(
            {name: value for name, value in resolved.identity.items() if name not in NOT_OF_RECIPE}
        )
        # A repeated tick goes on with its run, unless the data set or the spec has changed since.
        run = f"{job.name}-{tick}-{json_digest([self.base and self.base.number, resolved.identity])[:8]}"
        output = job.spec_of_run(parse_tick(tick), run).output
        self.resolved = replace(resolved, spec=resolved.spec.model_copy(update={"output": output}))
        self.run, self.run_name = Store(output), run_name(store, output)
        self.kept = self.base if job.incremental else None
        self.changes = Changes.since(store, self.kept, self.recipe)

    def _newest_run(self) -> Store | None:
        """The newest run in the data set, whose process goes on."""
        return run_store(self.store, self.base.last_run) if self.base and self.base.last_run else None

    def make(self, display: Display) -> TickResult:
        """Edits what is new or changed and publishes the version. It publishes nothing if nothing has changed, or if
        the run did not come to its end.

        A new image of a quarantined shard is left out; a changed one keeps its old rows.

        Raises:
            UserError: for anything the user can mend; also if the source is suddenly empty.
        """
        if self.base is not None and self.base.tick == self.tick:
            return _result(self.base)  # made by a driver that died afterwards
        ended = self._edit(display)
        self._refuse_sudden_emptiness()
        code = exit_code(ended.outcome) if ended else EXIT_OK
        if code not in (EXIT_OK, EXIT_QUARANTINE):
            assert ended is not None and ended.outcome is not None
            outcome: Outcome = "drained" if code == EXIT_DRAINED else "failed"
            return TickResult(self.tick, outcome, code, run=self.run_name, message=ended.outcome.tripped)
        done = KeySet(row["key"] for row in self._rows()) if ended else KeySet(())
        if not done and not self.changes.known.gone:
            return TickResult(
                self.tick, "quarantined" if code else "unchanged", code, changes=dict(self.changes.counts)
            )
        return self._publish(done, ended.plan.images if ended else 0)

    def _edit(self, display: Display) -> RunResult | None:
        """Edits the images that are new or changed; None if there are none."""
        spec = self.resolved.spec
        skipped = Skipped()
        to_do = self.changes.to_do(list_images(spec.source, spec.selection(), skipped))
        first = next(to_do, None)
        if first is None:
            return None
        open_run(self.run, self.resolved, chain([first], to_do), skipped)
        deque(to_do, maxlen=0)  # a run that had its plan already did not read the listing to its end
        return run(spec, display)

    def _refuse_sudden_emptiness(self) -> None:
        if self.base is not None and self.base.images and not self.changes.counts:
            raise UserError(
                f"the source {self.job.run.source} has no images any more, and version {self.base.number} has "
                f"{self.base.images}: the data set stays as it is, since that is rarely meant; bring them back, or "
                "give the job another root"
            )

    def _rows(self) -> Iterator[Row]:
        for row in CurrentRows(self.run).of_stage(FINAL):
            yield {**row, "run": self.run_name, "recipe": self.recipe}

    def _publish(self, done: KeySet, planned: int) -> TickResult:
        """Publishes the version with the rows of the images that are `done`, out of those that were planned."""
        index = write_index(self.store, self.kept, self.changes.keeps(done), self._rows() if done else ())
        version = Version(
            number=self.base.number + 1 if self.base else 1,
            tick=self.tick,
            run=self.run_name if done else None,
            spec_digest=self.job.digest(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            index=index.path,
            index_bytes=index.bytes,
            index_sha256=index.sha256,
            images=index.images,
            rows=dict(index.rows),
            parts=dict(index.parts),
            changes={**self.changes.counts, "gone": self.changes.known.gone, "quarantined": planned - len(done)},
        )
        there = publish(self.store, version)
        if there.tick != self.tick:
            raise UserError(
                f"another driver has made version {there.number} of {self.store.url} meanwhile, for tick {there.tick}: "
                "what it has not edited comes with the next tick"
            )
        return _result(there)


def _result(version: Version) -> TickResult:
    """The result of the tick that made a version."""
    is_whole = not version.changes["quarantined"]
    return TickResult(
        tick=version.tick,
        outcome="succeeded" if is_whole else "quarantined",
        exit_code=EXIT_OK if is_whole else EXIT_QUARANTINE,
        version=version.number,
        run=version.run,
        changes=version.changes,
    )
