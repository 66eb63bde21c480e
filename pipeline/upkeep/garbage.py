"""Finds and deletes garbage: files that no commit and no record names.

Killed attempts leave such files, and so do attempts that lost the race to commit. A plan or an addition leaves part
files if its command was killed or refused before it wrote the record. A write that was killed leaves a hidden file.

A run may be at work meanwhile. The order of reading, heartbeats and the age of files keep its attempts safe:

1. Attempts are listed first, then heartbeats, then commits. An attempt that was committed before the commits are listed
   is named by a commit that is seen. An attempt that begins after the first listing is not in it. Neither is garbage.
2. A listed attempt without a commit is still being written, or its actor is dead. If it is being written, the heartbeat
   of its actor says that it is in flight, and it is left alone. Its age protects it as well: an attempt is garbage only
   if it has been silent for as long as the caller says.
3. Parts of plans and additions are listed before their records are read. A command that is still writing parts sends no
   heartbeats, so only their age protects them.

No clock is compared with another. A heartbeat is alive if its actor writes it again within WATCH_SECONDS by the clock
of this process, as with the leases of a job. The age of a file is the time that the store gives it, compared with the
time that the same store gives to a file that is written now.

All of this failing, an attempt looks for its own files before it commits. If some are gone, its shard is done again.
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyrp.errors import UserError
from pipeline.run import additions, plan, progress
from pipeline.run.commit import FOLDER as COMMITS
from pipeline.run.commit import Commit, committed, read_commit, shard_name
from pipeline.run.progress import is_at_work, read_heartbeats
from pipeline.stages.evaluation import FOLDER as EVALUATIONS
from pipeline.stages.evaluation import read_evaluations
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Entry, Store

WATCH_SECONDS = 10.0
"""How long heartbeats are watched. Actors write theirs every 2 s."""

POLL_SECONDS = 0.5
UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp|\.probe-[0-9a-f]{32}")
"""The names of the hidden files of a store: of writes that have not ended, and of probes."""

InFlight = Callable[[Store], set[tuple[str, str]]]
"""Finds the stages and shards that actors have in flight."""


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
    return _collect(store, find_garbage(store, stages, _watched), older_than, dry_run)


def collect_unfinished(
    store: Store, folders: Iterable[str], older_than: float, dry_run: bool = False
) -> CollectedGarbage:
    """Deletes the hidden files directly in these folders of writes that were killed so many seconds ago.

    Raises:
        UserError: as `collect_garbage` does.
    """
    return _collect(store, list(unfinished_writes(store, folders)), older_than, dry_run)


def _collect(store: Store, found: Sequence[Garbage], older_than: float, dry_run: bool) -> CollectedGarbage:
    oldest = store_time(store) - older_than if found and older_than else math.inf
    freed: list[Garbage] = []
    young: list[Garbage] = []
    for garbage in found:
        is_old = older_than == 0 or (garbage.modified is not None and garbage.modified <= oldest)
        (freed if is_old else young).append(garbage)
    if not dry_run:
        for name in (name for garbage in freed for name in garbage.names):
            store.delete(name)
    return CollectedGarbage(freed, young)


def store_time(store: Store) -> float:
    """The time by the clock of a store, in POSIX seconds: that of a file written now.

    Raises:
        UserError: if the store does not say when files were written, or cannot be written to.
    """
    now = store.clock()
    if now is None:
        raise UserError(
            f"{store.url} does not say when its files were written, so the files of a run at work cannot be told "
            "from garbage: wait until none is at work, and give --older-than 0"
        )
    return now


def in_flight_by_clock(store: Store) -> set[tuple[str, str]]:
    """What recent heartbeats have in flight, by the clocks of their actors: good enough for what is only shown."""
    return _flights(beat for beat in read_heartbeats(store) if is_at_work(beat))


def find_garbage(store: Store, stages: Iterable[str], in_flight: InFlight = in_flight_by_clock) -> list[Garbage]:
    """The attempts that no commit and no record names, and that no actor at work has in flight. It looks at the given
    stages, at evaluations, at plans and at additions; and the hidden files of writes that have not ended."""
    evaluated = [evaluation.stage for evaluation in read_evaluations(store)]
    all_stages = [*stages, *evaluated]
    folders = [f"{COMMITS}/{stage}" for stage in all_stages]
    return [
        *_abandoned_attempts(store, all_stages, in_flight),
        *_abandoned_parts(store),
        *unfinished_writes(store, ["", "report", progress.FOLDER, EVALUATIONS, *folders]),
    ]


def unfinished_writes(store: Store, folders: Iterable[str]) -> Iterator[Garbage]:
    """The hidden files directly in these folders that belong to writes that have not ended."""
    for entry in (entry for folder in folders for entry in store.entries(folder)):
        if entry.is_file and UNFINISHED.fullmatch(entry.name.rpartition("/")[2]):
            yield _measure(store, [entry])


def _abandoned_attempts(store: Store, stages: Iterable[str], find_in_flight: InFlight) -> Iterator[Garbage]:
    listed = {stage: _attempts(store, stage) for stage in stages}
    unnamed = {stage: found for stage, attempts in listed.items() if (found := _unnamed(store, stage, attempts))}
    in_flight = find_in_flight(store) if unnamed else set()
    for stage, attempts in unnamed.items():
        for attempt, entries in sorted(_unnamed(store, stage, attempts).items()):  # some were committed meanwhile
            if (stage, _shard_of(attempt)) not in in_flight:
                yield _measure(store, entries)


def _unnamed(store: Store, stage: str, attempts: Mapping[str, list[Entry]]) -> dict[str, list[Entry]]:
    """The entries that no commit names, by attempt. If the commit of a shard cannot be read, any attempt at the shard
    may be the committed one, so none is given."""
    named, unreadable = _named(store, stage, {_shard_of(attempt) for attempt in attempts})
    found = {attempt: [e for e in entries if e.name not in named] for attempt, entries in attempts.items()}
    return {attempt: rest for attempt, rest in found.items() if rest and _shard_of(attempt) not in unreadable}


def _shard_of(attempt: str) -> str:
    return attempt.split(".")[0]


def _abandoned_parts(store: Store) -> Iterator[Garbage]:
    """Folders of part files that neither run.json nor the record of an addition names, and incomplete records."""
    listed = [entry for folder in (plan.FOLDER, additions.PARTS, additions.FOLDER) for entry in store.entries(folder)]
    named = {part.path.rpartition("/")[0] for addition in additions.read_additions(store) for part in addition.parts}
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


def _watched(store: Store) -> set[tuple[str, str]]:
    """What actors have in flight that write their heartbeats again while they are watched."""
    first = _open_heartbeats(store)
    alive: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + WATCH_SECONDS
    while alive.keys() < first.keys() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = _open_heartbeats(store)
        alive |= {actor: beat for actor, beat in now.items() if first.get(actor) != beat}
        first |= {actor: beat for actor, beat in now.items() if actor not in first}
    return _flights([first[actor] for actor in alive]) | _flights(alive.values())


def _open_heartbeats(store: Store) -> dict[str, dict[str, Any]]:
    return {beat["actor"]: beat for beat in read_heartbeats(store) if not beat["closed"]}


def _flights(heartbeats: Iterable[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(flight["stage"], shard_name(flight["shard"])) for beat in heartbeats for flight in beat["in_flight"]}


def _named(store: Store, stage: str, wanted: Container[str]) -> tuple[set[str], set[str]]:
    """The entries of data/<stage> and manifest/<stage> that the commits of some shards name, and those shards of them
    whose commit cannot be read."""

    def read(shard: int) -> Commit | None:
        try:
            return read_commit(store, stage, shard)
        except (UserError, FileNotFoundError):  # damaged, or a link that leads away: whatever is there protects
            return None

    named, unreadable = set(), set()
    shards = [shard for shard in sorted(committed(store, stage)) if shard_name(shard) in wanted]
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
