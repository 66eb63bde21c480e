"""Runs that an earlier version made, before run.json recorded its stages in full: they resume and are whole.

They were made at /earlier; a test lays them where it works and writes run.json as it would be there.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.record import open_run, recorded_plan, recorded_sizes, recorded_stages
from jobs.runs.resolve import resolve
from jobs.runs.run import run
from jobs.runs.run_file import read_run
from jobs.spec.run import RunSpec
from pipeline.storage.store import Store
from pipeline.upkeep.verify import verify
from tests.support.runs import DATA, SAMPLES, spec

EARLIER, MADE_AT = DATA / "runs", "/earlier"
STAGES = {
    "fused": ["boost", "reconstruct"],
    "staged": ["invert", "edit", "boost"],
    "augmented": ["boost"],
    "statistics": ["statistics"],
}
EDITING = [name for name in STAGES if name != "statistics"]
LABELS = "key,smile,glasses,beard,long_hair\nface_00.png,1,0,1,1\nface_01.png,0,1,0,0\n"
OPPOSITES = [{"edit": "glasses=1", "where": ["glasses=0"]}, {"edit": "glasses=-1", "where": ["glasses=1"]}]


def identity_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@pytest.fixture
def earlier(tmp_path) -> Callable[[str], Path]:
    """Lays a run and its source where they would be if the run had been made at `tmp_path`; the run's root."""

    def lay(name: str) -> Path:
        root = shutil.copytree(EARLIER / name, tmp_path / name)
        (tmp_path / "faces").mkdir()
        for face in ("face_00.png", "face_01.png"):
            shutil.copyfile(SAMPLES / face, tmp_path / "faces" / face)
        (tmp_path / "labels.csv").write_text(LABELS)
        text = (root / "run.json").read_text()
        written = json.loads(text)
        assert written["identity_hash"] == identity_hash(written["identity"])
        record = json.loads(text.replace(MADE_AT, str(tmp_path)))
        record["identity_hash"] = identity_hash(record["identity"])
        (root / "run.json").write_text(json.dumps(record, indent=1))
        return root

    return lay


def asked(root: Path) -> RunSpec:
    """What a user asks for who makes the run again."""
    changes: dict[str, dict[str, Any]] = {
        "fused": {"preview": 1},
        "staged": {"stages": "staged"},
        "augmented": {
            "edits": [],
            "augmentation": {"labels": str(root.parent / "labels.csv"), "edits": OPPOSITES, "draws": 1},
        },
    }
    process = {"n_inv": None, "n_gen": None}  # taken from the run
    return spec(root.parent / "faces", root, model="avatars", shard_size=2, **process, **changes[root.name])


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the run, without its reports."""
    files = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "report")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", EDITING)
def test_an_earlier_run_is_resumed_and_nothing_is_computed_again(earlier, name):
    root = earlier(name)
    before = contents(root)
    record = read_run(Store(str(root)))
    assert open_run(Store(str(root)), resolve(asked(root))) == recorded_plan(record)
    assert run(asked(root)).outcome is None
    assert contents(root) == before


def test_earlier_statistics_are_not_taken_for_others(cli, earlier, tmp_path):
    root = earlier("statistics")
    before = contents(root)
    learn = ("directions", "learn", "pca", "-s", tmp_path / "faces", "-k", "1", "--n-steps", "4", "--no-check")
    code, _, err = cli(*learn, "-o", tmp_path / "components", "--work", root)
    assert code == 2 and "is another one" in err, err
    assert contents(root) == before


@pytest.mark.parametrize("name", STAGES)
def test_an_earlier_run_is_whole_and_declares_its_stages(earlier, name):
    store = Store(str(earlier(name)))
    record = read_run(store)
    stages = recorded_stages(record)
    assert [stage.name for stage in stages] == STAGES[name]
    assert verify(store, recorded_plan(record), stages, recorded_sizes(record), deep=True).findings == []


@pytest.mark.parametrize("name", STAGES)
def test_the_commands_take_an_earlier_run(cli, earlier, name):
    root = earlier(name)
    for command in (("status", root), ("verify", root, "--deep")):
        code, _, err = cli(*command)
        assert code == 0, err
