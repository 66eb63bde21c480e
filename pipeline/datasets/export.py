"""Exports a run, or a version of a job's data set, as a data set.

The export reads rows through commits, splits them by image and writes shards without gaps in their numbers. First it
writes a record of what is exported, last the card, README.md. It never touches an output that has another record, or
files and no record. It writes an output with the same record again, to the same bytes; until that is done the output
has no card.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from asyrp.errors import UserError
from pipeline.augmentation.tally import Tally
from pipeline.datasets.formats import FORMATS, Add, Format
from pipeline.datasets.samples import ChangedSource, read_samples
from pipeline.datasets.splits import split_of
from pipeline.datasets.versions import Version, read_rows, run_store
from pipeline.images.statuses import OK
from pipeline.run.additions import CurrentRows, read_additions, replaced_rows
from pipeline.run.commit import committed, read_commit
from pipeline.run.containers import Contents, Sample
from pipeline.run.manifest import Row
from pipeline.run.names import shown_strength
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.records import RESTORE
from pipeline.storage.store import Store, explained, lies_inside, open_filesystem

RECORD = ".asyrp-export.json"
CARD = "README.md"
EXAMPLES = 5
"""How many keys of images with a changed source are kept."""

Watch = Callable[[Iterable[Sample | ChangedSource]], Iterable[Sample | ChangedSource]]
"""Passes samples on and shows how many there have been."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The settings of an export. `splits` maps names to shares that add up to 1; the card states `license`. An
    augmentation also has `run`, the identity of the run, and `labels`, the names of its labels."""

    format: str
    splits: dict[str, float]
    seed: int = 0
    statuses: tuple[str, ...] = (OK,)
    shard_bytes: int = 256_000_000
    with_source: bool = False
    license: str = "unknown"
    run: str | None = None
    labels: tuple[str, ...] | None = None

    def contents(self) -> Contents:
        return Contents(self.with_source, self.labels)


@dataclass(frozen=True)
class Snapshot:
    """The rows of a run or a version at one moment.

    `rows` counts them by status; `digest` differs from that of any other snapshot. `read` gives each row with the root
    of its run. `unfinished` says how much of the run is committed, None if all of it is.
    """

    url: str
    rows: Counter[str]
    digest: str
    read: Callable[[], Iterable[tuple[Store, Row]]]
    unfinished: str | None = None


@dataclass
class Exported:
    """The counts of an export.

    `samples` counts by split, edit and strength as text; of drawn strengths it has only the sign. `shards` counts by
    split. `changed` counts the images that were left out because their source has changed since they were edited;
    `examples` are some of their keys. `tally` has the counts of an augmentation.
    """

    samples: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    shards: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    examples: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def count(self, split: str, sample: Sample) -> None:
        edit, strength = sample.values["edit"], sample.values["strength"]
        drawn = "> 0" if strength > 0 else "< 0"
        self.samples[split, edit, drawn if sample.is_augmented else shown_strength(strength)] += 1
        self.tally.count(sample)

    def leave_out(self, source: ChangedSource) -> None:
        self.changed += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(source.key)


def take_snapshot(store: Store, stage: str, planned: int) -> Snapshot:
    """The rows that are committed now of a stage with `planned` shards."""
    shards = sorted(committed(store, stage))
    rows: Counter[str] = Counter()
    digest = hashlib.sha256()
    for commit in read_ahead(lambda shard: read_commit(store, stage, shard), shards):
        rows.update(commit.statuses)
        digest.update(f"{commit.shard} {commit.attempt}\n".encode())
    rows -= replaced_rows(read_additions(store), stage, set(shards))
    unfinished = f"{len(shards):,} of {planned:,} shards" if len(shards) < planned else None

    def read() -> Iterator[tuple[Store, Row]]:
        return ((store, row) for row in CurrentRows(store).of_stage(stage, shards))

    return Snapshot(store.url, rows, digest.hexdigest(), read, unfinished)


def version_snapshot(store: Store, version: Version) -> Snapshot:
    """The rows of a version of a job's data set, which never changes."""
    roots = {name: run_store(store, name) for name in version.parts}

    def read() -> Iterator[tuple[Store, Row]]:
        for row in read_rows(store, version):
            if (root := roots.get(row["run"])) is None:
                raise UserError(
                    f"{version.index} at {store.url} has a row of the run {row['run']!r}, which version "
                    f"{version.number} does not name: {RESTORE}"
                )
            yield root, row

    return Snapshot(store.url, Counter(version.rows), version.index, read)


def export(
    snapshot: Snapshot,
    output: Store,
    settings: ExportSettings,
    make_card: Callable[[Exported], str],
    watch: Watch = iter,
) -> Exported:
    """Writes the samples of a snapshot to `output`. Memory does not grow with their number.

    Raises:
        UserError: if no row has one of the statuses; if the output holds anything else, lies inside the run or cannot
            be written to; if the bytes of an image are not those that were committed; if a source cannot be read.
    """
    if not any(snapshot.rows[status] for status in settings.statuses):
        there = ", ".join(f"{count} {status}" for status, count in snapshot.rows.items()) or "no rows"
        raise UserError(f"no row of {snapshot.url} is {' or '.join(settings.statuses)}: there are {there}")
    if lies_inside(open_filesystem(output.url), open_filesystem(snapshot.url)):
        raise UserError(
            f"the output {output.url} lies inside {snapshot.url}, among files that are not its: move it out"
        )
    with explained(f"cannot write to {output.url}"):
        _claim(output, {"format": 1, "commits": snapshot.digest, "settings": asdict(settings)})
    output.delete(CARD)
    exported = Exported()
    wanted = ((store, row) for store, row in snapshot.read() if row["status"] in settings.statuses)
    samples = read_samples(wanted, settings.with_source)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(SplitWriter(output, name, settings)) for name in settings.splits}
        for sample in watch(samples):
            if isinstance(sample, ChangedSource):
                exported.leave_out(sample)
                continue
            if settings.run is not None:
                sample = sample.augmented(settings.run)
            split = split_of(sample.values["key"], settings.splits, settings.seed)
            writers[split].add(sample)
            exported.count(split, sample)
    exported.shards.update({split: writer.shards for split, writer in writers.items()})
    output.write(CARD, make_card(exported).encode())
    return exported


def _claim(output: Store, record: dict[str, Any]) -> None:
    """Marks an empty output with the record of this export. Raises UserError if it holds other files or another
    record."""
    data = json.dumps(record, indent=1).encode()
    names = {entry.name for entry in output.entries("")}
    if names and RECORD not in names:
        raise UserError(f"{output.url} holds other files: give an --output that is empty, or not there yet")
    if not output.create(RECORD, data) and output.read(RECORD) != data:
        raise UserError(f"{output.url} holds another export, of other commits or settings: give another --output")


class SplitWriter(AbstractContextManager["SplitWriter"]):
    """Writes the shards of one split, one at a time; a full shard is closed. After an error the open one is not
    written."""

    def __init__(self, output: Store, split: str, settings: ExportSettings) -> None:
        self.output, self.split, self.settings = output, split, settings
        self.format: Format = FORMATS[settings.format]
        self.shards = self.samples = 0
        self._add: Add | None = None
        self._open = ExitStack()
        self._room = (0, 0)  # the bytes and samples that the open shard still has room for

    def add(self, sample: Sample) -> None:
        if self._add is None or min(self._room) <= 0:
            self._add = self._next_shard()
        self._add(f"{self.samples:08d}", sample)
        self.samples += 1
        self._room = (self._room[0] - sample.bytes, self._room[1] - 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)
        if kind is None:
            self._delete_shards_of_an_earlier_export()

    def _next_shard(self) -> Add:
        self._open.close()
        name = self._name(self.shards)
        self.shards += 1
        self._room = (self.settings.shard_bytes, self.format.max_samples)
        return self._open.enter_context(self.format.open_shard(self.output, name, self.settings.contents()))

    def _delete_shards_of_an_earlier_export(self) -> None:
        """An earlier export of the same commits may have had more shards, as sources may have become smaller since."""
        number = self.shards
        while self.output.exists(self._name(number)):
            self.output.delete(self._name(number))
            number += 1

    def _name(self, shard: int) -> str:
        return self.format.shard.format(split=self.split, shard=shard)
