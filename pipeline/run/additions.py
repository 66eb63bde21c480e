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
from typing import Literal

from asyrp.errors import UserError
from pipeline.images.source import SourceImage
from pipeline.run.commit import committed, committed_rows
from pipeline.run.manifest import Row
from pipeline.run.plan import SHARDS_PER_PART, PlanRow, read_group, read_part, read_plan, read_planned, write_parts
from pipeline.run.stage import SAMPLE_STAGE
from pipeline.storage.store import Store

FOLDER = "additions"
PARTS = f"{FOLDER}/parts"
Kind = Literal["extend", "retry"]
Statuses = dict[str, dict[str, int]]
"""The number of manifest rows by status, for each stage."""


@dataclass(frozen=True, kw_only=True)
class Addition:
    """The record of an addition. `replaces` counts the manifest rows that a retry replaces."""

    number: int
    kind: Kind
    first_shard: int
    shards: int
    images: int
    parts: tuple[str, ...]
    replaces: Statuses

    @property
    def shard_ids(self) -> range:
        return range(self.first_shard, self.first_shard + self.shards)


def read_additions(store: Store) -> list[Addition]:
    """All additions of a run, oldest first."""
    records = [store.read_json(f"{FOLDER}/{name}") for name in sorted(store.names(FOLDER))]
    return [Addition(**{**record, "parts": tuple(record["parts"])}) for record in records]


def add(
    store: Store, kind: Kind, images: Iterable[SourceImage], *, planned: int, shard_size: int, replaces: Statuses
) -> Addition:
    """Add images to a run whose plan has `planned` shards. They are edited when the run continues.

    Raises:
        UserError: if another addition was made at the same time.
    """
    before = read_additions(store)
    last = max([planned, *(addition.shard_ids.stop for addition in before)])
    # A reader can tell shards of an addition from those of the plan by their numbers.
    first = -(-last // SHARDS_PER_PART) * SHARDS_PER_PART
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
    if not store.create(f"{FOLDER}/{addition.number:05d}.json", json.dumps(asdict(addition), indent=1).encode()):
        store.delete(folder)
        raise UserError(f"another command was adding to the run at {store.url} at the same time: try again")
    return addition


def read_shard(store: Store, shard: int) -> list[PlanRow]:
    """The rows of one shard of the plan or of an addition. Raises FileNotFoundError if neither has the shard."""
    try:
        return read_planned(store, shard)
    except FileNotFoundError:
        for addition in read_additions(store):
            if shard in addition.shard_ids:
                part, group = divmod(shard - addition.first_shard, SHARDS_PER_PART)
                return read_group(store, addition.parts[part], group)
        raise


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
    """All rows of an addition, with one shard in memory at a time."""
    for part in addition.parts:
        yield from read_part(store, part)


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
