"""Files that nothing names: what is left of attempts that were killed, or lost the race to commit, and the part files
of plans and additions that were killed or refused before their record.

A run may be at work meanwhile. What keeps its attempts safe is the order of reading, and age:

1. Attempts are listed before commits are read. So of a listed attempt that was committed by then, the commit is
   seen; an attempt that begins later is not in the listing. Neither is ever garbage.
2. A listed attempt that is not committed yet is still being written by its actor, or its actor is dead. The first
   is in flight in the actor's heartbeat, read between the two, and is left alone. For an actor whose heartbeats do
   not come through there is age: its attempt must have been silent for as long as the caller says.
3. Parts of plans and additions are listed before their records are read. A command that is still writing them sends no
   heartbeats: there is age alone.
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
    """What is left of one attempt, at a shard or at an addition. `modified`: when its newest file was written; None
    where the store does not say."""

    names: tuple[str, ...]  # files and folders
    files: int
    bytes: int
    modified: float | None


@dataclass(frozen=True)
class Collected:
    """What was deleted, and what was kept because it is too young."""

    freed: list[Garbage]
    young: list[Garbage]


def collect_garbage(store: Store, stages: Iterable[str], older_than: float, dry_run: bool = False) -> Collected:
    """Delete the attempts that nothing names and that have been silent for `older_than` seconds.

    Raises:
        UserError: if the store does not say when files were written, unless `older_than` is 0.
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
    return Collected(freed, young)


def find_garbage(store: Store, stages: Iterable[str]) -> list[Garbage]:
    """The attempts, at the stages and at evaluations, that no commit or record names and no actor at work has in
    flight."""
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
    """Folders of part files that neither run.json nor the record of an addition names, and torn records."""
    listed = [entry for folder in (plan.FOLDER, additions.PARTS, additions.FOLDER) for entry in store.entries(folder)]
    named = {part.rpartition("/")[0] for addition in additions.read_additions(store) for part in addition.parts}
    named |= {plan.current_plan(store).folder, additions.FOLDER}
    for entry in listed:
        folder, _, name = entry.name.rpartition("/")
        is_torn = entry.is_file and name.startswith(".")
        if is_torn or not {entry.name, folder} & named:
            yield _measure(store, [entry])


def _attempts(store: Store, stage: str) -> dict[str, list[Entry]]:
    """What there is of each attempt at a stage: the manifest belongs to the data, as its age is theirs."""
    attempts = defaultdict(list)
    for folder in (f"data/{stage}", f"manifest/{stage}"):
        for entry in store.entries(folder):
            name = entry.name.rsplit("/", 1)[-1]
            attempts[".".join(name.split(".")[:2])].append(entry)
    return attempts


def _in_flight(store: Store) -> set[tuple[str, str]]:
    """Stage and shard of all that actors are at work on."""
    at_work = (heartbeat for heartbeat in read_heartbeats(store) if is_at_work(heartbeat))
    return {(flight["stage"], shard_name(flight["shard"])) for beat in at_work for flight in beat["in_flight"]}


def _named(store: Store, stage: str) -> tuple[set[str], set[str]]:
    """The entries of data/<stage> and manifest/<stage> that commits name files of, and the shards whose commit cannot
    be read: any of their attempts may be named."""

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
    files = [file for entry in entries for file in ([entry] if entry.is_file else store.files(entry.name))]
    times = [file.modified for file in files or entries]
    modified = None if None in times else max(time for time in times if time is not None)
    names = tuple(entry.name for entry in entries)
    return Garbage(names, len(files), sum(file.bytes for file in files), modified)
