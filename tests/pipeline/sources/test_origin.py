"""The manifest of a run makes no command read a file that the run has not read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run import manifest
from pipeline.run.commit import Attempt, read_commit
from pipeline.sources.origin import Origin
from pipeline.storage.store import Store
from tests.support.runs import make_faces, stand_in_run

SECRET = b"a secret of this machine"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    stand_in_run(make_faces(folder / "faces", 3), folder / "out")
    (folder / "secret").write_bytes(SECRET)
    (folder / "faces" / "link").symlink_to(folder / "secret")
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made / "out", tmp_path / "out")


def recommit(run: Path, change: Callable[[manifest.Row], Any]) -> None:
    """Commit shard 0 again with its rows changed, as somebody can who may write to the root."""
    store = Store(str(run))
    commit = read_commit(store, "boost", 0)
    rows = manifest.from_bytes(store.read(commit.manifest))
    attempt = Attempt(store, "boost", 0)
    for row in rows:
        if row["output_uri"]:
            row["output_uri"] = attempt.write(Path(row["output_uri"]).name, store.read(row["output_uri"])).path
        change(row)
    store.delete("commit/boost/000000.json")
    assert attempt.commit(rows, commit.images, None)


NAMES: dict[str, Callable[[Path], str]] = {
    "a file": lambda made: f"file://{made}/secret",
    "a path": lambda made: f"{made}/secret",
    "a path that climbs": lambda made: f"file://{made}/faces/../secret",
    "a link": lambda made: f"file://{made}/faces/link",
    "a folder with the source's name first": lambda made: f"file://{made}/faces-other",
    "a chain": lambda made: f"simplecache::file://{made}/secret",
    "a chain after a listed scheme": lambda made: f"http://x::file://{made}/secret",
    "another scheme for this machine": lambda made: f"local://{made}/secret",
    "no scheme that there is": lambda _: "nope://x",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_a_row_that_names_another_file_gets_no_source(cli, made, run, tmp_path, name, sha256):
    (made / "faces-other").write_bytes(SECRET)
    recommit(run, lambda row: row.update(source_uri=name(made), source_sha256=sha256, source_size=None))
    code, _, err = cli("export", run, "--to", "webdataset", "-o", tmp_path / "set", "--with-source")
    said = err.replace("\n", " ")
    assert code == 2 and "names a source that was not read for it" in said and "Traceback" not in said
    assert not any(SECRET in path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file())
    code, _, err = cli("report", run)
    assert code == 0, err
    assert cli("export", run, "--to", "webdataset", "-o", tmp_path / "without")[0] == 0


def test_a_row_without_the_digest_of_its_source_is_no_free_pass(cli, run, tmp_path):
    recommit(run, lambda row: row.update(source_sha256=None))
    code, _, err = cli("export", run, "--to", "webdataset", "-o", tmp_path / "set", "--with-source")
    assert code == 2 and "has no SHA-256 of its source" in err.replace("\n", " ")


def with_source(run: Path, source: str) -> Origin:
    record = json.loads((run / "run.json").read_text())
    record["spec"]["source"] = source
    (run / "run.json").write_text(json.dumps(record))
    return Origin(Store(str(run)))


@pytest.mark.parametrize(
    ("source", "uri", "held"),
    [
        ("/photos", "file:///photos/a/b.png", True),
        ("/photos", "file:///photos", True),
        ("/photos", "file:///photos2/b.png", False),
        ("/photos/*/*.png", "file:///photos/a/b.png", True),
        ("/photos/a*/*.png", "file:///photos/b.png", True),
        ("/photos/a*/*.png", "file:///b.png", False),
        ("/photos.tar", "file:///photos.tar", True),
        ("/list.csv", "https://x/y.png", True),
        ("/list.csv", "file:///list.csv2", False),
        ("/list.csv", "https://user:word@x/y.png", False),
        ("s3://bucket/photos", "s3://bucket/photos/a.png", True),
        ("s3://bucket/photos", "file:///photos/a.png", False),
        ("memory://photos", "memory://photos/a.png", True),
        ("memory://photos", "memory://photos/../a.png", False),
        ("memory://photos", "memory://other/a.png", False),
    ],
)
def test_what_a_source_has_below_it(run, source, uri, held):
    row = {"source_uri": uri}
    assert (with_source(run, source).held(row) == row) is held
