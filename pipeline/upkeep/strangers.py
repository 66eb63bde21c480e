"""Finds files among the records of a run that asyrp did not write, such as those of desktops and synchronising tools.

All readers pass them over, because they do not have the names of records.
"""

from collections.abc import Callable, Iterable, Iterator

from pipeline.run import additions, commit, progress
from pipeline.stages import evaluation
from pipeline.storage.records import numbered
from pipeline.storage.store import Store
from pipeline.upkeep.garbage import UNFINISHED


def strangers(store: Store, stages: Iterable[str]) -> Iterator[str]:
    """The names of these files."""
    for stage in stages:
        yield from _others(store, f"{commit.FOLDER}/{stage}", lambda name: bool(numbered([name], commit.SHARD_DIGITS)))
    yield from _others(store, additions.FOLDER, lambda name: bool(numbered([name], additions.DIGITS)))
    yield from _others(store, progress.FOLDER, progress.is_heartbeat)
    yield from _others(store, evaluation.FOLDER, evaluation.is_record)


def _others(store: Store, folder: str, is_record: Callable[[str], bool]) -> Iterator[str]:
    for entry in store.entries(folder):
        name = entry.name.rpartition("/")[2]
        if not entry.is_folder and not is_record(name) and not UNFINISHED.fullmatch(name):
            yield entry.name
