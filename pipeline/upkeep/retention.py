"""Deletes what a job no longer needs: old versions, runs that no version names, indexes that were never named.

Runs are deleted as a whole. A run stays as long as one row of a version comes from it.

A driver may be at work meanwhile. It builds on the newest version, which always stays. Leases are read before versions.
A run that had made a version by then is therefore seen in that version. While the last lease is unfinished, only runs
of old versions are deleted, and no index that is not named. After that, such an index stays until it is old.
"""

import time
from dataclasses import dataclass

from asyrp.errors import UserError
from pipeline.datasets.leases import read_leases
from pipeline.datasets.versions import INDEXES, Version, forget, read_versions, run_store
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Retired:
    """The versions (by number), roots of runs and index files that are deleted."""

    versions: list[int]
    runs: list[str]
    indexes: list[str]


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
        abandoned_runs = {lease.facts["run"] for lease in leases if lease.facts.get("run")}
        abandoned_indexes = _unnamed_indexes(store, versions, older_than)
    candidates = abandoned_runs | _runs(gone)
    retired = Retired(
        [version.number for version in gone],
        sorted(candidates - _runs(kept)),
        [version.index for version in gone] + abandoned_indexes,
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
        run_store(store, run).delete("")


def _runs(versions: list[Version]) -> set[str]:
    return {run for version in versions for run in version.parts}


def _unnamed_indexes(store: Store, versions: list[Version], older_than: float) -> list[str]:
    named = {version.index for version in versions}
    unnamed = [entry for entry in store.entries(INDEXES) if entry.name not in named]
    if older_than and any(entry.modified is None for entry in unnamed):
        raise UserError(
            f"{store.url} does not say when its files were written, so the index of a driver at work cannot be told "
            "from garbage: wait until none is at work, and give --older-than 0"
        )
    now = time.time()
    return [entry.name for entry in unnamed if now - (entry.modified or 0) >= older_than]
