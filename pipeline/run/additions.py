"""Adds shards to a plan after it was frozen: new images of the source, or images that are tried again.

A plan and its shards never change. An addition consists of more shards, which are numbered from the next part of the
plan on, and of one small record. The record is created last, if it is absent; until then nothing refers to the
addition. The part files have unique names, so two commands at once do not mix up theirs. The command whose record comes
second gives up.
"""

import json
import uuid
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from asyrp.errors import UserError
from pipeline.images.source import SourceImage
from pipeline.run.commit import FOLDER as COMMITS
from pipeline.run.commit import commit_name, committed, committed_rows
from pipeline.run.manifest import Row
from pipeline.run.plan import (
    SHARDS_PER_PART,
    Part,
    PlanRow,
    counted_rows,
    current_plan,
    read_group,
    read_plan,
    read_planned,
    refuse_gone,
    write_parts,
)
from pipeline.run.stage import SAMPLE_STAGE
from pipeline.storage.records import (
    RESTORE,
    Count,
    DamagedRecord,
    ShardCount,
    numbered,
    read_as,
    record_name,
)
from pipeline.storage.store import Store, explained

FOLDER = "additions"
DIGITS = 5
PARTS = f"{FOLDER}/parts"
Kind = Literal["extend", "retry"]
Statuses = dict[str, dict[str, Count]]
"""The number of manifest rows by status, for each stage."""


def _part(recorded: Any) -> Any:
    """A part as it is recorded now; an earlier asyrp recorded its path alone."""
    return {"path": recorded} if isinstance(recorded, str) else recorded


@dataclass(frozen=True, kw_only=True)
class Addition:
    """The record of an addition. `replaces` counts the manifest rows that a retry replaces."""

    number: int
    kind: Kind
    first_shard: ShardCount
    shards: ShardCount
    images: Count
    parts: tuple[Annotated[Part, BeforeValidator(_part)], ...]
    replaces: Statuses

    @property
    def shard_ids(self) -> range:
        return range(self.first_shard, self.first_shard + self.shards)


def read_additions(store: Store) -> list[Addition]:
    """All additions of a run, oldest first.

    Raises:
        DamagedRecord: if the record of one is missing or damaged.
    """
    numbers = numbered(store.names(FOLDER), DIGITS)
    return [_read(store, number) for number in range(1, max(numbers, default=0) + 1)]


def _read(store: Store, number: int) -> Addition:
    name = f"{FOLDER}/{record_name(number, DIGITS)}"
    try:
        addition = read_as(store, name, Addition)
    except FileNotFoundError:
        raise DamagedRecord(f"{name} is missing at {store.url}, and later ones are there: {RESTORE}") from None
    if addition.number != number:
        raise DamagedRecord(f"{name} at {store.url} is damaged, it is addition {addition.number}: {RESTORE}")
    return addition


def add(
    store: Store, kind: Kind, images: Iterable[SourceImage], *, planned: int, shard_size: int, replaces: Statuses
) -> Addition:
    """Add images to a run whose plan has `planned` shards. They are edited when the run continues.

    Raises:
        UserError: if another addition was made at the same time, or the record of one is missing.
    """
    before = read_additions(store)
    last = max([planned, *(addition.shard_ids.stop for addition in before)])
    # A reader can tell shards of an addition from those of the plan by their numbers.
    first = -(-last // SHARDS_PER_PART) * SHARDS_PER_PART
    _refuse_commits_beyond(store, first)
    folder = f"{PARTS}/{uuid.uuid4().hex[:12]}"
    written = write_parts(store, images, shard_size, folder, first)
    addition = Addition(
        number=len(before) + 1,
        kind=kind,
        first_shard=first,
        shards=written.shards,
        images=written.images,
        parts=tuple(written.parts),
        replaces=replaces,
    )
    refuse_gone(store, written.parts)
    name = f"{FOLDER}/{record_name(addition.number, DIGITS)}"
    with explained(f"cannot write {name} to {store.url}"):
        created = store.create(name, json.dumps(asdict(addition), indent=1).encode())
    if not created:
        store.delete(folder)
        raise UserError(f"another command was adding to the run at {store.url} at the same time: try again")
    return addition


def _refuse_commits_beyond(store: Store, first: int) -> None:
    """Raise UserError if a shard is committed that a new addition would have: the addition that had it is missing."""
    for folder in store.entries(COMMITS):
        stage = folder.name.rpartition("/")[2]
        if beyond := [shard for shard in committed(store, stage) if shard >= first]:
            raise UserError(
                f"{commit_name(stage, min(beyond))} at {store.url} is of an addition whose record is missing below "
                f"{FOLDER}/: {RESTORE}"
            )


def read_shard(store: Store, shard: int) -> list[PlanRow]:
    """The rows of one shard of the plan or of an addition.

    Raises:
        DamagedPlan: if its part is missing or not as it was written.
        FileNotFoundError: if neither has the shard.
    """
    plan = current_plan(store)
    if shard < plan.shards:
        return read_planned(store, plan, shard)
    for addition in read_additions(store):
        if shard in addition.shard_ids:
            part, group = divmod(shard - addition.first_shard, SHARDS_PER_PART)
            if part < len(addition.parts):
                return read_group(store, addition.parts[part], group, shard)
    raise FileNotFoundError(f"neither the plan nor an addition at {store.url} has shard {shard}")


def read_everything(store: Store) -> Iterator[PlanRow]:
    """All rows of the plan, then those of the additions."""
    yield from read_plan(store)
    for addition in read_additions(store):
        yield from read_addition(store, addition)


def read_images(store: Store) -> Iterator[PlanRow]:
    """The rows of all images, each image once: those of the plan, then those of additions that are no retries."""
    yield from read_plan(store)
    for addition in read_additions(store):
        if addition.kind == "extend":
            yield from read_addition(store, addition)


def read_addition(store: Store, addition: Addition) -> Iterator[PlanRow]:
    """All rows of an addition, with one part in memory at a time. Raises DamagedPlan as `counted_rows` does."""
    record = f"{FOLDER}/{record_name(addition.number, DIGITS)}"
    return counted_rows(store, addition.parts, addition.shards, addition.images, record)


class CurrentRows:
    """The current manifest rows of a run: for an image that was tried again, those of its last retry.

    Additions are listed once, and commits once for each stage, so all answers are about the same moment.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        retries = (addition for addition in read_additions(store) if addition.kind == "retry")
        self._retried = [(row.key, row.shard) for retry in retries for row in read_addition(store, retry)]
        self._committed: dict[str, set[int]] = {}

    def of_stage(self, stage: str, shards: Iterable[int] | None = None) -> Iterator[Row]:
        """The current rows of a stage. With `shards`, only these committed shards are read and taken into account."""
        present = self._done(stage) if shards is None else set(shards)
        standing = self.standing(present)
        for row in committed_rows(self.store, stage, sorted(present)):
            if standing.get(row["key"], row["shard"]) == row["shard"]:
                yield row

    def standing(self, shards: Container[int]) -> dict[str, int]:
        """The shard of the current rows, by key, for each image that was tried again in one of these shards."""
        return {key: shard for key, shard in self._retried if shard in shards}

    def waiting(self, stage: str) -> set[str]:
        """The keys of the images whose retry is not committed in this stage."""
        return {key for key, shard in self._retried if shard not in self._done(stage)}

    def _done(self, stage: str) -> set[int]:
        if stage not in self._committed:
            self._committed[stage] = committed(self.store, stage)
        return self._committed[stage]


def replaced_rows(additions: Iterable[Addition], stage: str, done: Container[int]) -> Counter[str]:
    """The number of rows of a stage, by status, that finished retries have replaced; `done` are committed shards."""
    replaced: Counter[str] = Counter()
    for addition in additions:
        if all(shard in done for shard in addition.shard_ids):
            replaced.update(addition.replaces.get(stage, {}))
    return replaced


def shard_ids(store: Store, planned: int) -> list[int]:
    """The ids of the shards of the plan and of all additions."""
    return [*range(planned), *(shard for addition in read_additions(store) for shard in addition.shard_ids)]


def grown(store: Store, sizes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The shards and images of each stage with those of the additions, given the sizes without them.

    SAMPLE_STAGE does not grow.
    """
    additions = read_additions(store)
    shards, images = sum(addition.shards for addition in additions), sum(addition.images for addition in additions)
    return {
        name: (of_plan[0] + shards, of_plan[1] + images) if name != SAMPLE_STAGE else of_plan
        for name, of_plan in sizes.items()
    }
