"""A tick that dies at any point: the next driver goes on from what is there."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from asyrp.errors import UserError
from jobs.runs.record import open_run
from jobs.runs.run import no_display
from jobs.schedule.next_version import NextVersion, tick_text
from jobs.schedule.tick import open_job, run_tick
from jobs.spec.job import Job
from pipeline.datasets import leases
from pipeline.datasets.leases import Heartbeat, begin, read_leases
from pipeline.datasets.versions import latest, read_rows, read_version, read_versions, run_store
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store
from tests.support.runs import FEW_STEPS, make_faces, run_here, stand_in_stages

TICK, NEXT = datetime(2026, 5, 1, 2, tzinfo=UTC), datetime(2026, 5, 2, 2, tzinfo=UTC)


class Killed(BaseException):
    """Stands in for kill -9: nothing catches it, nothing is tidied up."""


@pytest.fixture
def source(tmp_path) -> Path:
    return make_faces(tmp_path / "faces", 3)


@pytest.fixture
def job(source, monkeypatch) -> Callable[..., Job]:
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.05)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.01)

    def make(root: Path, **changes: Any) -> Job:
        run = {"source": str(source), "edits": ["glasses=1", "smile=-0.5"], "engine": {"check": False}, **FEW_STEPS}
        return Job.model_validate({"name": "faces", "root": str(root), "run": run, **changes})

    return make


def compute(job: Job, tick: datetime) -> NextVersion:
    """Do the run of a tick in this process, with a stand-in for the net, so that it needs no cluster any more."""
    coming = NextVersion(job, open_job(job), tick_text(tick))
    spec = coming.resolved.spec
    to_do = coming.changes.to_do(list_images(spec.source, spec.selection()))
    open_run(coming.run, coming.resolved, list(to_do))
    run_here(coming.resolved, make=stand_in_stages)
    return coming


def kill_after(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Die after so many more writings; what was written."""
    written: list[str] = []

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(store: Store, name: str, data: bytes) -> Any:
            result = write(store, name, data)
            written.append(name)
            if len(written) == number:
                raise Killed
            return result

        return call

    patch.setattr(Store, "create", dying(Store.create))
    patch.setattr(Store, "write", dying(Store.write))
    return written


def keys(store: Store) -> list[str]:
    version = latest(store)
    return sorted({row["key"] for row in read_rows(store, version)}) if version else []


def test_a_driver_that_dies_after_any_writing_leaves_a_tick_that_the_next_one_ends_well(job, tmp_path, monkeypatch):
    compute(job(tmp_path / "computed"), TICK)
    for number in range(2, 100):  # the first writing is before the tick has begun
        nightly = job(shutil.copytree(tmp_path / "computed", tmp_path / f"job-{number}"))
        store = Store(nightly.root)
        with monkeypatch.context() as patch:
            written = kill_after(patch, number)
            try:
                run_tick(nightly, TICK)
                break
            except Killed:
                assert keys(store) in ([], ["0000.png", "0001.png", "0002.png"]), written[-1]
        result = run_tick(nightly, NEXT)
        assert keys(store) == ["0000.png", "0001.png", "0002.png"], written[-1]
        assert latest(store).number == 1 and sum(latest(store).rows.values()) == 6, written[-1]
        ended = [lease.outcome for lease in read_leases(store)]
        assert ended[0] == result.outcome and ended.count(None) <= 1, written[-1]
    assert number >= 6, (
        "a lease, its end, the run's summary, a version and the record of a tick were written at the least"
    )


def test_a_data_set_keeps_the_process_of_its_newest_version_where_the_spec_names_none(job, tmp_path):
    """Another usual process does not make every image again."""
    nightly = job(tmp_path / "job")
    papers, silent = (
        nightly.model_copy(update={"run": nightly.run.model_copy(update=process)})
        for process in ({"solver": "ddim", "n_inv": 4, "n_gen": 3}, {"n_inv": None, "n_gen": None})
    )
    compute(papers, TICK)
    assert run_tick(papers, TICK).outcome == "succeeded"
    assert run_tick(silent, NEXT).outcome == "unchanged"
    named = silent.model_copy(update={"run": silent.run.model_copy(update={"preset": "fast"})})
    recipes = [NextVersion(each, open_job(each), tick_text(NEXT)).recipe for each in (papers, silent, named)]
    assert recipes[0] == recipes[1] != recipes[2]


def test_a_tick_that_is_done_is_not_done_again(job, source, tmp_path):
    nightly = job(tmp_path / "job")
    compute(nightly, TICK)
    first = run_tick(nightly, TICK)
    make_faces(source, 4)
    assert (
        run_tick(nightly, TICK) == replace(first, message="it was done already")
        and latest(Store(nightly.root)).number == 1
    )


def test_of_two_drivers_with_different_ticks_only_one_makes_the_next_version(job, tmp_path):
    nightly = job(tmp_path / "job")
    late, early = compute(nightly, TICK), compute(nightly, NEXT)
    assert early.make(no_display).version == 1
    with pytest.raises(UserError, match=r"another driver has made version 1 of .* meanwhile"):
        late.make(no_display)
    assert latest(Store(nightly.root)).tick == tick_text(NEXT)


def test_a_change_of_the_spec_does_every_image_again_in_another_run(job, tmp_path):
    nightly = job(tmp_path / "job")
    compute(nightly, TICK)
    assert run_tick(nightly, TICK).version == 1
    stronger = nightly.model_copy(update={"run": nightly.run.model_copy(update={"edits": ["glasses=2", "smile=1"]})})
    compute(stronger, NEXT)
    result = run_tick(stronger, NEXT)
    assert (result.version, result.changes["again"]) == (2, 3)
    assert {row["strength"] for row in read_rows(Store(nightly.root), latest(Store(nightly.root)))} == {2.0, 1.0}


def test_a_job_that_is_not_incremental_does_everything_at_every_tick(job, source, tmp_path):
    weekly = job(tmp_path / "job", incremental=False)
    compute(weekly, TICK)
    assert run_tick(weekly, TICK).changes["new"] == 3
    (source / "0001.png").unlink()
    compute(weekly, NEXT)
    assert run_tick(weekly, NEXT).changes["new"] == 2
    assert keys(Store(weekly.root)) == ["0000.png", "0002.png"]


def test_a_source_that_is_empty_all_of_a_sudden_does_not_empty_the_data_set(job, source, tmp_path):
    nightly = job(tmp_path / "job")
    compute(nightly, TICK)
    run_tick(nightly, TICK)
    for file in source.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="has no images any more, and version 1 has 3"):
        run_tick(nightly, NEXT)
    assert latest(Store(nightly.root)).number == 1


def test_gc_lets_go_of_old_versions_and_of_runs_that_no_other_has_images_of(job, source, tmp_path, cli):
    nightly = job(tmp_path / "job")
    store = Store(nightly.root)
    compute(nightly, TICK)
    first = run_tick(nightly, TICK)
    for file in source.iterdir():
        file.write_bytes(file.read_bytes() + b"\0")
    compute(nightly, NEXT)
    second = run_tick(nightly, NEXT)
    (source / "0000.png").unlink()
    assert run_tick(nightly, NEXT + timedelta(days=1)).version == 3
    store.write("versions/index/torn.parquet", b"what a driver that died has left")
    gc = ("gc", store.url, "--older-than", "0", "--json")
    assert json.loads(cli(*gc, "--dry-run")[1])["indexes"] == ["versions/index/torn.parquet"]
    lease = begin(store, "a later tick", wait=False)
    code, out, err = cli(*gc, "--keep-versions", "2")
    assert code == 0, err
    found = json.loads(out)
    assert (found["versions"], found["runs"]) == ([1], [first.run]) and store.exists("versions/index/torn.parquet")
    with Heartbeat(store, lease, lambda: None) as heartbeat:
        heartbeat.end(True, "unchanged", {})
    assert json.loads(cli(*gc)[1])["indexes"] == ["versions/index/torn.parquet"]
    assert [version.number for version in read_versions(store)] == [3, 2]
    assert list((tmp_path / "job" / "runs").iterdir()) == [tmp_path / "job" / second.run]
    for row in read_rows(store, read_version(store, 2)):
        assert run_store(store, row["run"]).exists(row["output_uri"])
    code, _, err = cli("gc", store.path(second.run), "--keep-versions", "1")
    assert code == 2 and "--keep-versions is for the root of a job" in err
