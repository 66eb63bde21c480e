"""Checks whether a run is whole. It compares the plan, the commits and the files they name, from storage alone.

Commits are listed before files. The files of a commit were complete when it was made, so a run that is at work
meanwhile looks incomplete, never damaged.
"""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from safetensors import SafetensorError
from safetensors.numpy import load

from pipeline.images.codec import ImageRefused, decode
from pipeline.images.fetch import ParquetCells
from pipeline.images.statuses import OK
from pipeline.run import manifest
from pipeline.run.additions import read_additions, read_everything, replaced_rows, shard_ids
from pipeline.run.commit import Commit, DamagedCommit, FileEntry, commit_digest, commit_name, committed, read_commit
from pipeline.run.names import shown_strength
from pipeline.run.plan import PlanRow, PlanSummary, is_intact
from pipeline.run.progress import StageState
from pipeline.run.sinks import DamagedOutput, read_output
from pipeline.run.stage import Stage
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import NotAFile, OutsideRoot, Store, os_errors
from pipeline.upkeep.garbage import Garbage, find_garbage
from pipeline.upkeep.strangers import strangers

SHOWN = 5
"""How many missing shards a finding names."""

Watch = Callable[[Iterable[PlanRow]], Iterable[PlanRow]]
"""Passes the rows of the plan on and shows how many there have been."""


@dataclass(frozen=True)
class Finding:
    """A fault. `message` says in one sentence what is wrong, where, and what to do. `stage` is None if the fault
    concerns the whole run."""

    kind: Literal["missing", "damaged"]
    stage: str | None
    shards: tuple[int, ...]
    message: str


@dataclass
class Verification:
    """The state of a run and its faults. `files` and `bytes` count the files that commits name. `strangers` are files
    among the records that asyrp did not write."""

    stages: dict[str, StageState]
    findings: list[Finding] = field(default_factory=list)
    garbage: list[Garbage] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    @property
    def whole(self) -> bool:
        """Whether every planned shard of every stage is committed and nothing is damaged."""
        return not self.findings


def verify(
    store: Store,
    plan: PlanSummary,
    stages: Sequence[Stage],
    sizes: Mapping[str, tuple[int, int]],
    deep: bool = False,
    watch: Watch = iter,
) -> Verification:
    """Checks a run against its plan; `sizes` gives the shards and images of each stage.

    For every planned shard of every stage it checks that

    - the shard is committed;
    - the files of its commit are there, with their sizes;
    - its manifest is the committed one, and has every row of the plan once per variant;
    - the statuses and outputs of the manifest are those of the commit;
    - the commit that it was made from is still the current one.

    With `deep` it also reads every file, compares its SHA-256 and decodes it.
    """
    report = Verification({name: StageState(shards, images) for name, (shards, images) in sizes.items()})
    report.strangers = list(strangers(store, sizes))
    if not is_intact(store, plan):
        text = "plan/ is not what run.json was written with: bring it back from a copy, or make the run anew elsewhere"
        report.findings.append(Finding("damaged", None, (), text))
        return report
    if gone := [
        part.path for addition in read_additions(store) for part in addition.parts if not store.exists(part.path)
    ]:
        report.findings.append(Finding("damaged", None, (), f"{_these(gone)} missing: bring it back from a copy"))
        return report
    shards = shard_ids(store, plan.shards)
    committed_shards = {stage.name: committed(store, stage.name) for stage in stages}
    checker = CommitChecker(store, stages, deep)
    for stage in stages:
        report.findings += _shards_findings(stage, stage.shards(shards), committed_shards[stage.name])
    for commit, findings in read_ahead(checker.check, _committed_shards(store, stages, committed_shards, watch)):
        report.findings += findings
        if commit is not None:
            _count(report, commit)
    additions = read_additions(store)
    for name, state in report.stages.items():
        state.rows -= replaced_rows(additions, name, committed_shards[name])
    report.garbage = find_garbage(store, sizes)
    return report


def _shards_findings(stage: Stage, planned: Sequence[int], there: set[int]) -> Iterator[Finding]:
    if missing := tuple(shard for shard in planned if shard not in there):
        numbers = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        text = f"{stage.name}: {len(missing)} of {len(planned)} shards are not committed ({numbers})"
        yield Finding("missing", stage.name, missing, f"{text}: give the run's command again")
    for shard in sorted(there - set(planned)):
        text = f"{commit_name(stage.name, shard)} is of no shard of the plan: delete it"
        yield Finding("damaged", stage.name, (shard,), text)


def _count(report: Verification, commit: Commit) -> None:
    state = report.stages[commit.stage]
    state.shards_done += 1
    state.images_done += commit.images
    state.rows.update(commit.statuses)
    report.files += len(commit.files)
    report.bytes += sum(file.bytes for file in commit.files)


@dataclass(frozen=True)
class CommittedShard:
    """A committed shard of a stage, and its rows of the plan."""

    stage: Stage
    shard: int
    plan: list[PlanRow]


def _committed_shards(
    store: Store, stages: Sequence[Stage], committed_shards: Mapping[str, set[int]], watch: Watch
) -> Iterator[CommittedShard]:
    for shard, rows in itertools.groupby(watch(read_everything(store)), key=lambda row: row.shard):
        plan = list(rows)
        for stage in stages:
            if shard in committed_shards[stage.name] and (stage.first_images is None or shard == 0):
                yield CommittedShard(stage, shard, plan[: stage.first_images])


class CommitChecker:
    """Checks commits and the files they name. Several threads may use it."""

    def __init__(self, store: Store, stages: Sequence[Stage], deep: bool) -> None:
        self.store, self.deep = store, deep
        self.manifests = {
            entry.name: entry.bytes for stage in stages for entry in store.entries(f"manifest/{stage.name}")
        }

    def check(self, unit: CommittedShard) -> tuple[Commit | None, list[Finding]]:
        """The commit, or None if it cannot be read, and its faults."""
        try:
            commit = read_commit(self.store, unit.stage.name, unit.shard)
        except (DamagedCommit, OutsideRoot):
            return None, [_damaged(unit, "its commit cannot be read")]
        try:
            faults = list(self._faults(unit, commit))
        except NotAFile:
            faults = ["what its commit names is no regular file"]
        return commit, [_damaged(unit, text) for text in faults]

    def _faults(self, unit: CommittedShard, commit: Commit) -> Iterator[str]:
        """The faults of a commit, each as the first half of a sentence."""
        yield from self._input_faults(unit, commit)
        sizes = self._sizes(commit)
        gone = [file.path for file in commit.files if file.path not in sizes]
        resized = [file.path for file in commit.files if sizes.get(file.path, file.bytes) != file.bytes]
        if gone:
            yield f"{_these(gone)} missing"
        if resized:
            yield f"{_these(resized)} not of the size that the commit says"
        intact = {file.path: file for file in commit.files if file.path not in {*gone, *resized}}
        if (entry := intact.pop(commit.manifest, None)) is None:
            return
        data = self.store.read(commit.manifest)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            yield f"{commit.manifest} is not what was committed"
            return
        rows = manifest.from_bytes(data)
        yield from _row_faults(unit, commit, rows)
        if self.deep:
            yield from self._content_faults(unit, rows, list(intact.values()))

    def _input_faults(self, unit: CommittedShard, commit: Commit) -> Iterator[str]:
        stage = unit.stage
        if stage.reads is None:
            return
        try:
            digest = commit_digest(Store(stage.input_root) if stage.input_root else self.store, stage.reads, unit.shard)
        except FileNotFoundError:
            yield f"the commit of {stage.reads} that it was made from is gone"
            return
        if digest != commit.input_digest:
            yield f"it was made from another commit of {stage.reads} than there is now"

    def _sizes(self, commit: Commit) -> dict[str, int]:
        """The sizes of the files on storage, by one listing of each folder that the commit names."""
        folders = {"/".join(file.path.split("/")[:3]) for file in commit.files if file.path.startswith("data/")}
        data = {entry.name: entry.bytes for folder in folders for entry in self.store.files(folder)}
        return self.manifests | data

    def _content_faults(self, unit: CommittedShard, rows: list[manifest.Row], files: list[FileEntry]) -> Iterator[str]:
        changed, unreadable = [], []
        rows_of = defaultdict(list)
        for row in rows:
            rows_of[row["output_uri"]].append(row)
        for file in files:
            try:
                self._read_deeply(unit.stage, file, rows_of[file.path])
            except DamagedOutput:
                changed.append(file.path)
            except (ImageRefused, SafetensorError):
                unreadable.append(file.path)
        if changed:
            yield f"{_these(changed)} not what was committed: the SHA-256 differs"
        if unreadable:
            yield f"{_these(unreadable)} committed, but cannot be decoded to what the manifest says"

    def _read_deeply(self, stage: Stage, file: FileEntry, rows: Sequence[manifest.Row]) -> None:
        """Compares the SHA-256 of a file, and decodes the outputs that its rows name.

        Raises:
            DamagedOutput: if its bytes are not those that were committed.
            ImageRefused, SafetensorError: if it cannot be decoded.
        """
        if stage.writes == "images":
            if not _is_one_image(rows):  # an image's own SHA-256 is that of its file
                with os_errors(), self.store.open(file.path) as stream:
                    _compare(file, hashlib.file_digest(stream, "sha256").hexdigest())
            cells = ParquetCells()
            for row in rows:
                decode(read_output(self.store, row, cells), row["width"], "exact")
            return
        data = self.store.read(file.path)
        _compare(file, hashlib.sha256(data).hexdigest())
        if lacking := {row["output_member"] for row in rows} - load(data).keys():
            raise SafetensorError(f"it lacks {lacking}")


def _compare(file: FileEntry, digest: str) -> None:
    if digest != file.sha256:
        raise DamagedOutput(f"{file.path} is not what was committed")


def _is_one_image(rows: Sequence[manifest.Row]) -> bool:
    return len(rows) == 1 and rows[0]["output_member"] is None


def _row_faults(unit: CommittedShard, commit: Commit, rows: list[manifest.Row]) -> Iterator[str]:
    planned = Counter(
        (row.row, row.key, which.edit, which.strength) for row in unit.plan for which in unit.stage.planned(row.draws)
    )
    found = Counter(
        (row["row"], row["key"], row["edit"], unit.stage.planned_strength(row["edit"], row["strength"])) for row in rows
    )
    if lacking := planned - found:
        yield f"its manifest lacks {_rows(lacking)} of the plan"
    if surplus := found - planned:
        yield f"its manifest has {_rows(surplus)} more than the plan"
    statuses = Counter(row["status"] for row in rows)
    if statuses != Counter(commit.statuses) or commit.images != len(unit.plan):
        yield "its commit counts other images or statuses than its manifest has"
    named = {file.path: file.sha256 for file in commit.files}
    if astray := [row["key"] for row in rows if not _output_is_named(unit.stage, row, named)]:
        yield f"outputs in {counted(len(astray), 'row')} (the first is {astray[0]}) are not files of its commit"


def _rows(rows: Counter[tuple[int, str, str | None, float | None]]) -> str:
    _, key, edit, strength = next(iter(rows))
    which = f"{key}{'' if edit is None else f', {edit} {shown_strength(strength)}'}"
    return f"{counted(rows.total(), 'row')} ({'' if rows.total() == 1 else 'the first is '}{which})"


def _output_is_named(stage: Stage, row: manifest.Row, named: Mapping[str, str]) -> bool:
    uri = row["output_uri"]
    if uri is None:
        return row["status"] != OK or stage.writes == "statistics"
    return uri in named and (row["output_member"] is not None or row["output_sha256"] == named[uri])


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _these(paths: Sequence[str]) -> str:
    return f"{paths[0]} is" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more are"


def _damaged(unit: CommittedShard, fault: str) -> Finding:
    remedy = f"delete {commit_name(unit.stage.name, unit.shard)} and give the run's command again"
    return Finding(
        "damaged", unit.stage.name, (unit.shard,), f"{unit.stage.name} shard {unit.shard}: {fault}: {remedy}"
    )
