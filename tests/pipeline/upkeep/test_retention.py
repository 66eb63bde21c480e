"""`asyrp gc` of a job deletes runs of that job, and nothing else that a record may name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets.leases import Heartbeat, begin
from pipeline.storage.store import Store
from pipeline.upkeep.retention import retire
from tests.support.runs import make_faces, stand_in_run


@pytest.fixture(scope="module")
def run_of(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    return Path(stand_in_run(make_faces(folder / "faces", 2), folder / "run").root)


@pytest.fixture
def job(tmp_path, run_of) -> Store:
    """The root of a job with a run that no version has; beside the root there is a victim that is a run, too."""
    store = Store(str(tmp_path / "root"))
    store.write("job.json", b'{"format": 1, "name": "faces"}')
    shutil.copytree(run_of, tmp_path / "root" / "runs" / "old")
    shutil.copytree(run_of, tmp_path / "victim")
    return store


def end_tick(store: Store, run: Any) -> None:
    """A tick that failed, and whose lease says that it had this run."""
    with Heartbeat(store, begin(store, "tick", wait=False), lambda: None) as heartbeat:
        heartbeat.end(True, "failed", {"run": run})


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if "leases" not in path.parts}


def test_a_run_that_no_version_has_is_deleted_as_a_whole(job, cli, tmp_path):
    end_tick(job, "runs/old")
    code, out, err = cli("gc", job.url, "--json")
    assert code == 0 and json.loads(out)["runs"] == ["runs/old"], err
    assert not (tmp_path / "root" / "runs" / "old").exists() and job.exists("job.json")
    assert json.loads(cli("gc", job.url, "--json")[1])["runs"] == [], "what is gone is not deleted again"


Name = Callable[[Path], Any]
STRANGE: dict[str, Name] = {
    "an absolute path": lambda tmp: str(tmp / "victim"),
    "a URL": lambda tmp: f"file://{tmp}/victim",
    "a path that climbs": lambda _: "../victim",
    "a path that climbs from the runs": lambda _: "runs/../../victim",
    "the root": lambda _: ".",
    "nothing": lambda _: "",
    "the folder of all runs": lambda _: "runs",
    "the folder of all runs, with a slash": lambda _: "runs/",
    "a run by another name": lambda _: "runs/./kept",
    "a folder of a run": lambda _: "runs/kept/data",
    "records of the job": lambda _: "versions",
    "a link to a run elsewhere": lambda _: "runs/link",
    "a pattern": lambda _: "runs/*",
    "no name": lambda _: ["runs/old"],
}


@pytest.mark.parametrize("name", STRANGE.values(), ids=STRANGE)
def test_a_record_that_names_anything_else_deletes_nothing(job, cli, tmp_path, run_of, name):
    shutil.copytree(run_of, tmp_path / "root" / "runs" / "kept")
    (tmp_path / "root" / "runs" / "link").symlink_to(tmp_path / "victim")
    end_tick(job, name(tmp_path))
    before = files(tmp_path)
    code, _, err = cli("gc", job.url, "--older-than", "0")
    assert code == 0, err
    assert "Traceback" not in err and files(tmp_path) == before


def test_a_run_that_the_spec_of_a_job_puts_elsewhere_is_named(job, tmp_path, cli):
    end_tick(job, str(tmp_path / "victim"))
    retired = retire(job, None, 0, dry_run=False)
    assert (retired.runs, retired.elsewhere) == ([], [str(tmp_path / "victim")])
    assert f"{tmp_path}/victim, which no version needs: delete it by hand" in cli("gc", job.url)[1]
