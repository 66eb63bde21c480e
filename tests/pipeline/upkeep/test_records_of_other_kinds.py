"""What bears the name of a record, and is a link, a folder, a pipe or the record of something else, costs no file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from asyrp.errors import UserError
from jobs.cli.app import app
from jobs.runs.record import recorded_plan, recorded_sizes, recorded_stages
from jobs.runs.run_file import read_run
from pipeline.run.commit import DamagedCommit, commit_name, committed, read_commit, read_manifest
from pipeline.run.plan import DamagedPlan, read_group, read_part
from pipeline.storage.store import Store
from pipeline.upkeep.garbage import collect_garbage, find_garbage
from pipeline.upkeep.verify import verify
from tests.support.runs import make_faces, stand_in_run

COMMIT = commit_name("boost", 0)
REPLACEMENTS: dict[str, Callable[[Path], None]] = {
    "a link inside the root": lambda path: path.symlink_to(os.path.relpath(path.parents[2] / "kept", path.parent)),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link that leads away": lambda path: path.symlink_to("/etc/hosts"),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    stand_in_run(make_faces(folder / "faces", 6), folder / "run")
    return folder / "run"


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy of the run, to be broken."""
    return shutil.copytree(made, tmp_path / "run")


def files_of(root: Path) -> set[str]:
    return {str(path) for folder in ("data", "manifest") for path in (root / folder).rglob("*")}


@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_whatever_bears_the_name_of_a_commit_protects_its_shard(root, replace):
    store, before = Store(str(root)), files_of(root)
    (root / COMMIT).rename(root / "kept")
    replace(root / COMMIT)
    collect_garbage(store, ["boost"], older_than=0)
    assert files_of(root) == before
    record = read_run(store)
    report = verify(store, recorded_plan(record), recorded_stages(record), recorded_sizes(record))
    assert [finding.kind for finding in report.findings] in ([], ["damaged"])
    assert 0 in committed(store, "boost")


def test_a_commit_that_is_a_link_inside_the_root_is_read(root):
    (root / COMMIT).rename(root / "kept")
    REPLACEMENTS["a link inside the root"](root / COMMIT)
    assert read_commit(Store(str(root)), "boost", 0).files


def edited(record: dict[str, Any], name: str) -> dict[str, Any]:
    own = [file for file in record["files"] if file["path"] == record["manifest"]]
    data = [file for file in record["files"] if file["path"] != record["manifest"]]
    path = data[0]["path"]
    folder, _, file = path.rpartition("/")
    return (
        record
        | {
            "no files": {"files": []},
            "no manifest among its files": {"files": data},
            "an empty manifest": {"manifest": ""},
            "a manifest elsewhere": {"manifest": path},
            "a file elsewhere": {"files": [*own, data[0] | {"path": "run.json"}]},
            "a file that climbs": {"files": [*own, data[0] | {"path": f"{folder}/../{file}"}]},
            "the folder as a file": {"files": [*own, data[0] | {"path": f"{folder}/"}]},
            "a file of another attempt": {"files": [*own, data[0] | {"path": f"{folder}0/{file}"}]},
            "an attempt that climbs": {"attempt": "../x"},
            "another attempt": {"attempt": "0" * 12},
            "another shard": {"shard": 1},
            "another stage": {"stage": "invert"},
        }[name]
    )


@pytest.mark.parametrize(
    "name",
    [
        "no files",
        "no manifest among its files",
        "an empty manifest",
        "a manifest elsewhere",
        "a file elsewhere",
        "a file that climbs",
        "the folder as a file",
        "a file of another attempt",
        "an attempt that climbs",
        "another attempt",
        "another shard",
        "another stage",
    ],
)
def test_a_commit_names_its_manifest_and_files_of_its_attempt_alone(root, name):
    record = json.loads((root / COMMIT).read_text())
    (root / COMMIT).write_text(json.dumps(edited(record, name)))
    with pytest.raises(DamagedCommit):
        read_commit(Store(str(root)), "boost", 0)
    assert not find_garbage(Store(str(root)), ["boost"])
    answer = CliRunner().invoke(app, ["report", str(root)])
    assert isinstance(answer.exception, DamagedCommit) and COMMIT in str(answer.exception)


def swapped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_a_pipe_in_place_of_a_file_is_one_sentence_and_is_not_waited_for(root):
    store = Store(str(root))
    plan, commit = recorded_plan(read_run(store)), read_commit(store, "boost", 0)
    for name in (plan.files[0].path, commit.manifest, "run.json"):
        swapped(root / name)
    with pytest.raises(DamagedPlan, match="is no regular file"):
        read_group(store, plan.files[0], 0, 0)
    with pytest.raises(DamagedPlan, match="is no regular file"):
        list(read_part(store, plan.files[0]))
    with pytest.raises(DamagedCommit, match="is no regular file"):
        read_manifest(store, commit)
    with pytest.raises(UserError, match=r"run.json .* is no regular file"):
        read_run(store)
    assert isinstance(CliRunner().invoke(app, ["status", str(root)]).exception, UserError)


def test_a_pipe_among_the_files_of_a_commit_is_found(root):
    store = Store(str(root))
    record = read_run(store)
    path = json.loads((root / COMMIT).read_text())["files"][0]["path"]
    swapped(root / path)
    report = verify(store, recorded_plan(record), recorded_stages(record), recorded_sizes(record), deep=True)
    assert [finding.kind for finding in report.findings] == ["damaged"]
