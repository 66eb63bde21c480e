"""Deletes what a job no longer needs: old versions, runs that no version names, indexes that were never named.

Runs are deleted as a whole. A run stays as long as one row of a version comes from it.

Records only say what is no longer needed. What is deleted is found by a listing of the root: record files, indexes, and
folders below RUNS that hold a run. A run that lies anywhere else is named and left to the user, because a record alone
does not prove that a folder belongs to the job.

A driver may be at work meanwhile. It builds on the newest version, which always stays. Leases are read before versions.
A run that had made a version by then is therefore seen in that version. While the last lease is unfinished, only runs
of old versions are deleted, and no index that is not named. After that, such an index stays until it is old.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.datasets.leases import read_leases
from pipeline.datasets.versions import INDEXES, Version, forget, read_versions
from pipeline.run.plan import RUN
from pipeline.storage.records import DamagedRecord, read_as
from pipeline.storage.store import Entry, Store
from pipeline.upkeep.garbage import store_time

RUNS = "runs"
"""The folder of a job's runs, unless its spec says where they go."""


@dataclass(frozen=True)
class _Run:
    """The part of run.json that says what a run is."""

    identity: dict[str, Any]


@dataclass(frozen=True)
class Retired:
    """The versions (by number), roots of runs and index files that are deleted.

    `elsewhere` names roots that are not needed either, and not deleted, because they are no runs below RUNS.
    """

    versions: list[int]
    runs: list[str]
    indexes: list[str]
    elsewhere: list[str]


def retire(store: Store, keep: int | None, older_than: float, dry_run: bool) -> Retired:
    """Deletes all versions but the newest `keep` (None keeps all), and the runs and indexes that nothing names then.

    Raises:
        UserError: if the store does not say when files were written, and `older_than` is not 0.
    """
    leases = list(read_leases(store))
    versions = list(read_versions(store))
    kept, gone = (versions, []) if keep is None else (versions[:keep], versions[keep:])
    abandoned_runs, abandoned_indexes = set[str](), list[str]()
    if not leases or leases[0].finished:
        abandoned_runs = {run for lease in leases if (run := lease.run) is not None}
        abandoned_indexes = _unnamed_indexes(store, versions, older_than)
    candidates = sorted((abandoned_runs | _runs(gone)) - _runs(kept))
    places = {run: _place(store, run) for run in candidates}
    gone_indexes = {version.index for version in gone} - {version.index for version in kept}
    retired = Retired(
        versions=[version.number for version in gone],
        runs=[run for run, place in places.items() if place == "runs"],
        indexes=[entry.name for entry in store.entries(INDEXES) if entry.name in gone_indexes] + abandoned_indexes,
        elsewhere=[run for run, place in places.items() if place == "elsewhere"],
    )
    if not dry_run:
        _delete(store, retired)
    return retired


def _delete(store: Store, retired: Retired) -> None:
    """Deletes versions before the files they name, so that no reader starts with a version that is not whole."""
    for number in retired.versions:
        forget(store, number)
    for index in retired.indexes:
        store.delete(index)
    for run in retired.runs:
        store.delete(run)


def _place(store: Store, run: str) -> Literal["runs", "elsewhere", "nowhere"]:
    """Where a run lies that a record names: it is below RUNS, or elsewhere, or is deleted already."""
    top, *below = run.split("/")
    if top != RUNS or not below or any(part in ("", ".", "..") for part in below):
        return "elsewhere"
    entry = next((entry for entry in store.entries(run.rpartition("/")[0]) if entry.name == run), None)
    if entry is None:
        return "nowhere"
    return "runs" if _is_run(store, entry) else "elsewhere"


def _is_run(store: Store, entry: Entry) -> bool:
    """Whether a folder is the root of a run: it has a run.json that says how the run was made."""
    try:
        return entry.is_folder and bool(read_as(store, f"{entry.name}/{RUN}", _Run).identity)
    except (FileNotFoundError, DamagedRecord):
        return False


def _runs(versions: list[Version]) -> set[str]:
    return {run for version in versions for run in version.parts}


def _unnamed_indexes(store: Store, versions: list[Version], older_than: float) -> list[str]:
    named = {version.index for version in versions}
    unnamed = [entry for entry in store.entries(INDEXES) if entry.name not in named]
    if not older_than or not unnamed:
        return [entry.name for entry in unnamed]
    oldest = store_time(store) - older_than
    return [entry.name for entry in unnamed if entry.modified is not None and entry.modified <= oldest]
