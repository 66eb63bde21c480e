"""A damaged record is one sentence for every command; a file among the records that is none is passed over."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.datasets.leases import Heartbeat, begin
from pipeline.datasets.versions import DamagedIndex, Version, latest, publish, read_rows, write_index
from pipeline.images.source import SourceImage
from pipeline.run.additions import add
from pipeline.stages.evaluation import record_evaluation
from pipeline.storage import records
from pipeline.storage.store import Store
from pipeline.upkeep import garbage
from tests.support.runs import make_faces, stand_in_run

COMMANDS = {
    "status": ("status", "{root}"),
    "verify": ("verify", "{root}"),
    "gc": ("gc", "{root}", "--dry-run"),
    "report": ("report", "{root}"),
    "export": ("export", "{root}", "--to", "parquet", "-o", "{root}-set", "--partial"),
    "retry": ("retry", "{root}", "--status", "rejected_size"),
    "source": ("plan", "-s", "{root}", "-o", "{root}-again", "-e", "smile=1", "--no-check"),
}
SLOW = {"retry", "source"}
"""Commands that load the model when a record is well."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run with records of every kind."""
    folder = tmp_path_factory.mktemp("records")
    store = stand_in_run(make_faces(folder / "faces", 4), folder / "out", shard_size=2, preview=1)
    record_evaluation(store, {"inspection": {}, "judged_by": {"clip": None}})
    add(store, "extend", [SourceImage("new.png", "file:///nowhere")], planned=2, shard_size=2, replaces={})
    store.write("report/tally.json", b'{"boost": {"shards": [0], "images": 2, "rows": {"ok": 4}}}')
    store.write("report/summary.json", b'{"complete": true, "stages": {}, "session": {"quarantined": []}}')
    return folder / "out"


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture(autouse=True)
def _short_watch(monkeypatch):
    monkeypatch.setattr(garbage, "WATCH_SECONDS", 0.0)


RECORDS = {
    "run.json": "run.json",
    "commit": "commit/boost/000001.json",
    "addition": "additions/00001.json",
    "heartbeat": "progress/here.json",
    "tally": "report/tally.json",
    "summary": "report/summary.json",
    "evaluation": "evaluations/*.json",
}
READ_BY = {
    "run.json": "status",
    "commit": "export",
    "addition": "status",
    "heartbeat": "status",
    "tally": "status",
    "summary": "report",
    "evaluation": "report",
}
"""A command that reads the record."""

DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"format": 2, "spec": {"sou',
    "an empty object": b"{}",
    "another object": b'{"a": 1}',
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "nested deeply": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "NaN": b"NaN",
    "a long number": b'{"format": ' + b"9" * 10_000 + b"}",
    "no text": b"\x89PNG\r\n\x1a\n\0\0",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a lone surrogate": b'{"a": "\\ud800"}',
}


def said_by(cli: Callable[..., Any], command: tuple[str, ...], root: Path) -> tuple[int, str]:
    code, out, err = cli(*(part.format(root=root) for part in command))
    assert "Traceback" not in out + err
    return code, (out + err).replace("\n", " ")


@pytest.mark.parametrize(("record", "what"), READ_BY.items(), ids=READ_BY)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_a_sentence(cli, run, record, what, damage):
    [path] = run.glob(RECORDS[record])
    path.write_bytes(damage)
    code, said = said_by(cli, COMMANDS[what], run)
    if (record, damage) == ("tally", b"{}"):  # a tally of nothing
        assert code == 0
    else:
        assert code == 2 and path.relative_to(run).as_posix() in said, said


@pytest.mark.parametrize("record", ["run.json", "commit", "addition"])
def test_a_damaged_record_is_a_sentence_for_every_command(cli, run, record):
    [path] = run.glob(RECORDS[record])
    path.write_bytes(b'{"a": 1}')
    for what, command in COMMANDS.items():
        code, said = said_by(cli, command, run)
        damaged = path.relative_to(run).as_posix() in said or "boost shard 1: its commit cannot be read" in said
        assert damaged if code else (what, record) == ("gc", "commit"), said


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, each in inside for path in paths_of(each, (*at, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is LEFT_OUT and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


LEFT_OUT = object()
STRANGE = [
    LEFT_OUT,
    None,
    True,
    -1,
    0,
    5,
    1e300,
    float("nan"),
    float("inf"),
    10**18,
    10**40,
    "",
    "../../x",
    "/etc",
    [],
    [1],
    {},
    {"a": 1},
]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_record_with_a_value_of_another_kind_is_never_a_traceback(cli, made, tmp_path_factory, data):
    root = tmp_path_factory.mktemp("changed") / "out"
    shutil.copytree(made, root)
    try:
        [path] = root.glob(data.draw(st.sampled_from(list(RECORDS.values()))))
        record = json.loads(path.read_text())
        place = data.draw(st.sampled_from([at for at in paths_of(record) if at]))
        path.write_text(json.dumps(changed(record, place, data.draw(st.sampled_from(STRANGE)))))
        what = data.draw(st.sampled_from(sorted(COMMANDS.keys() - SLOW)))
        before = {file for file in root.parent.rglob("*") if root not in file.parents}
        code, _ = said_by(cli, COMMANDS[what], root)
        assert code in (0, 2, 3)
        after = {file for file in root.parent.rglob("*") if root not in file.parents}
        assert what == "export" or before == after
    finally:
        shutil.rmtree(root.parent)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((("stages",), value) for value in ({}, [])),
        (("format",), 1),
        (("spec", "solver"), "euler"),
        (("spec", "n_inv"), "20"),
        (("spec", "n_gen"), 0),
    ],
)
@pytest.mark.parametrize("what", ["status", "export"])
def test_a_run_without_stages_or_with_a_process_that_there_is_not_is_damaged(cli, run, place, value, what):
    path = run / "run.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    code, said = said_by(cli, COMMANDS[what], run)
    assert code == 2 and "run.json at" in said and "is damaged, its field" in said, said


def test_a_record_that_is_too_large_is_not_read(cli, run, monkeypatch):
    monkeypatch.setattr(records, "MOST_BYTES", 10_000)
    with (run / "run.json").open("ab") as file:
        file.truncate(2**40)  # a file of holes, which would not fit into memory
    code, said = said_by(cli, COMMANDS["status"], run)
    assert code == 2 and "run.json at" in said and "has more than 10,000 bytes" in said


STRANGERS = (
    "{} (1).json",
    "{}.json.icloud",
    ".DS_Store",
    "Thumbs.db",
    "{}.json~",
    "._{}.json",
    "{}.json.tmp",
    "~${}.json",
    "1.json",
    "٣.json",
)


@pytest.mark.parametrize("record", ["commit", "addition", "heartbeat", "evaluation"])
def test_strangers_among_the_records_are_passed_over_and_counted(cli, run, record):
    [path] = run.glob(RECORDS[record])
    names = [name.format(path.stem) for name in STRANGERS if record != "heartbeat" or name[0] not in "1٣"]
    plain = {what: said_by(cli, COMMANDS[what], run) for what in ("status", "verify")}
    for name in names:
        shutil.copy(path, path.parent / name)
    (path.parent / "a folder").mkdir()
    for what in COMMANDS.keys() - SLOW - {"export"}:
        code, said = said_by(cli, COMMANDS[what], run)
        assert what not in plain or code == plain[what][0]
        assert what != "verify" or f"passed over {len(names)} files among the records" in said
    assert json.loads(cli("verify", run, "--json")[1])["strangers"] != []


@pytest.fixture
def job(tmp_path) -> Store:
    """The root of a job with records of every kind."""
    store = Store(str(tmp_path / "job"))
    store.write("job.json", b'{"format": 1, "name": "faces"}')
    with Heartbeat(store, begin(store, "20260501T020000Z", wait=False), lambda: None) as heartbeat:
        heartbeat.end(True, "failed", {"run": "runs/x"})
    row = {"key": "a.png", "shard": 0, "row": 0, "stage": "boost", "status": "ok", "run": "runs/x", "recipe": "r"}
    index = write_index(store, None, bool, [row])
    version = Version(
        number=1,
        tick="t",
        run="runs/x",
        spec_digest="",
        created_at=datetime.now(UTC).isoformat(),
        index=index.path,
        index_bytes=index.bytes,
        index_sha256=index.sha256,
        images=1,
        rows=dict(index.rows),
        parts=dict(index.parts),
        changes={},
    )
    publish(store, version)
    return store


JOB_COMMANDS = {
    "status": ("jobs", "status", "{root}"),
    "history": ("jobs", "history", "{root}"),
    "cancel": ("jobs", "cancel", "{root}"),
    "gc": ("gc", "{root}", "--dry-run"),
    "export": ("export", "{root}", "--to", "parquet", "-o", "{root}-set"),
}


@pytest.mark.parametrize(
    ("record", "what"),
    [("job.json", "status"), ("leases/00000001.json", "history"), ("versions/000001.json", "status")],
)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_of_a_job_is_a_sentence(cli, job, record, what, damage):
    job.write(record, damage)
    code, said = said_by(cli, JOB_COMMANDS[what], Path(job.root))
    assert code == 2 and record in said, said


@pytest.mark.parametrize("record", ["job.json", "leases/00000001.json", "versions/000001.json"])
def test_a_damaged_record_of_a_job_is_a_sentence_for_every_command(cli, job, record):
    job.write(record, b'{"a": 1}')
    for command in JOB_COMMANDS.values():
        code, said = said_by(cli, command, Path(job.root))
        assert not code or record in said or "there is no run at" in said, said


@pytest.mark.parametrize("record", ["leases/00000001.json", "versions/000001.json"])
def test_strangers_among_the_records_of_a_job_are_passed_over(cli, job, record):
    path = Path(job.path(record))
    for name in STRANGERS:
        shutil.copy(path, path.parent / name.format(path.stem))
    for what in ("status", "history", "cancel", "gc"):
        code, said = said_by(cli, JOB_COMMANDS[what], Path(job.root))
        assert code == 0, said
    assert len(json.loads(cli("jobs", "history", job.url, "--json")[1])) == 1


@pytest.mark.parametrize("harm", ["missing", "cut off", "changed"])
def test_an_index_that_is_not_as_it_was_written_is_a_sentence(job, harm):
    [path] = Path(job.path("versions/index")).iterdir()
    data = path.read_bytes()
    path.write_bytes(data[:-5] if harm == "cut off" else data[:200] + bytes([data[200] ^ 1]) + data[201:])
    if harm == "missing":
        path.unlink()
    with pytest.raises(DamagedIndex, match=r"the index of version 1 at .*: bring it back from a copy"):
        list(read_rows(job, latest(job)))
