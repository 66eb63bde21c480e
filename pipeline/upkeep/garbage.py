"""Finds and deletes garbage: files that no commit and no record names.

Killed attempts leave such files, and so do attempts that lost the race to commit. A plan or an addition leaves part
files if its command was killed or refused before it wrote the record.

A run may be at work meanwhile. The order of reading and the age of files keep its attempts safe:

1. Attempts are listed first, then heartbeats, then commits. An attempt that was committed before the commits are listed
   is named by a commit that is seen. An attempt that begins after the first listing is not in it. Neither is garbage.
2. A listed attempt without a commit is still being written, or its actor is dead. If it is being written, the heartbeat
   of its actor says that it is in flight, and it is left alone. If that heartbeat does not come through, its age
   protects it: an attempt is garbage only if it has been silent for as long as the caller says.
3. Parts of plans and additions are listed before their records are read. A command that is still writing parts sends no
   heartbeats, so only their age protects them.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from asyrp.errors import UserError
from pipeline.run import additions, plan
from pipeline.run.commit import Commit, DamagedCommit, committed, read_commit, shard_name
from pipeline.run.progress import is_at_work, read_heartbeats
from pipeline.stages.evaluation import read_evaluations
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Entry, Store


@dataclass(frozen=True)
class Garbage:
    """The files left by one attempt at a shard, a plan or an addition. `names` are files and folders. `modified` is the
    time of the newest file, in POSIX seconds; None if the store does not say."""

    names: tuple[str, ...]
    files: int
    bytes: int
    modified: float | None


@dataclass(frozen=True)
class CollectedGarbage:
    """The garbage that was deleted (`freed`), and the garbage that was kept because it is too young."""

    freed: list[Garbage]
    young: list[Garbage]


def collect_garbage(store: Store, stages: Iterable[str], older_than: float, dry_run: bool = False) -> CollectedGarbage:
    """Deletes the attempts that nothing names and that have been silent for `older_than` seconds.

    Raises:
        UserError: if the store does not say when files were written, and `older_than` is not 0.
    """
    freed: list[Garbage] = []
    young: list[Garbage] = []
    now = time.time()
    for garbage in find_garbage(store, stages):
        if garbage.modified is None and older_than > 0:
            raise UserError(
                f"{store.url} does not say when its files were written, so the files of a run at work cannot be told "
                "from garbage: wait until none is at work, and give --older-than 0"
            )
        old = older_than == 0 or (garbage.modified is not None and now - garbage.modified >= older_than)
        (freed if old else young).append(garbage)
    if not dry_run:
        for name in (name for garbage in freed for name in garbage.names):
            store.delete(name)
    return CollectedGarbage(freed, young)


def find_garbage(store: Store, stages: Iterable[str]) -> list[Garbage]:
    """The attempts that no commit and no record names, and that no actor at work has in flight. It looks at the given
    stages, at evaluations, at plans and at additions."""
    evaluated = [evaluation.stage for evaluation in read_evaluations(store)]
    return [*_abandoned_attempts(store, [*stages, *evaluated]), *_abandoned_parts(store)]


def _abandoned_attempts(store: Store, stages: Iterable[str]) -> Iterator[Garbage]:
    listed = {stage: _attempts(store, stage) for stage in stages}
    in_flight = _in_flight(store)
    for stage, attempts in listed.items():
        named, unreadable = _named(store, stage)
        kept = unreadable | {shard for at, shard in in_flight if at == stage}
        for attempt, entries in sorted(attempts.items()):
            unnamed = [entry for entry in entries if entry.name not in named]
            if unnamed and attempt.split(".")[0] not in kept:
                yield _measure(store, unnamed)


def _abandoned_parts(store: Store) -> Iterator[Garbage]:
    """Folders of part files that neither run.json nor the record of an addition names, and incomplete records."""
    listed = [entry for folder in (plan.FOLDER, additions.PARTS, additions.FOLDER) for entry in store.entries(folder)]
    named = {part.rpartition("/")[0] for addition in additions.read_additions(store) for part in addition.parts}
    named |= {plan.current_plan(store).folder, additions.FOLDER}
    for entry in listed:
        folder, _, name = entry.name.rpartition("/")
        is_incomplete = entry.is_file and name.startswith(".")
        if is_incomplete or not {entry.name, folder} & named:
            yield _measure(store, [entry])


def _attempts(store: Store, stage: str) -> dict[str, list[Entry]]:
    """The entries of each attempt at a stage: its data and its manifest, so that they share one age."""
    attempts = defaultdict(list)
    for folder in (f"data/{stage}", f"manifest/{stage}"):
        for entry in store.entries(folder):
            name = entry.name.rsplit("/", 1)[-1]
            attempts[".".join(name.split(".")[:2])].append(entry)
    return attempts


def _in_flight(store: Store) -> set[tuple[str, str]]:
    """The stages and shards that actors have in flight."""
    at_work = (heartbeat for heartbeat in read_heartbeats(store) if is_at_work(heartbeat))
    return {(flight["stage"], shard_name(flight["shard"])) for beat in at_work for flight in beat["in_flight"]}


def _named(store: Store, stage: str) -> tuple[set[str], set[str]]:
    """The entries of data/<stage> and manifest/<stage> that commits name, and the shards whose commit cannot be read.
    Any attempt at such a shard may be the committed one."""

    def read(shard: int) -> Commit | None:
        try:
            return read_commit(store, stage, shard)
        except (DamagedCommit, FileNotFoundError):
            return None

    named, unreadable = set(), set()
    shards = sorted(committed(store, stage))
    for shard, commit in zip(shards, read_ahead(read, shards), strict=True):
        if commit is None:
            unreadable.add(shard_name(shard))
        else:
            named |= {"/".join(file.path.split("/")[:3]) for file in commit.files}
    return named, unreadable


def _measure(store: Store, entries: list[Entry]) -> Garbage:
    files = [file for entry in entries for file in (store.files(entry.name) if entry.is_folder else [entry])]
    times = [file.modified for file in files or entries]
    modified = None if None in times else max(time for time in times if time is not None)
    names = tuple(entry.name for entry in entries)
    return Garbage(names, len(files), sum(file.bytes for file in files), modified)
