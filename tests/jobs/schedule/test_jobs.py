"""Jobs as people run them: a day's life on an object store, a stop from afar, the examples, the commands."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
import yaml

from jobs.schedule.notify import notify
from jobs.schedule.serve import ScheduledJob
from jobs.schedule.tick import run_tick
from jobs.spec.job import Job, Notifications, load_job
from pipeline.datasets import leases
from pipeline.datasets.leases import last_lease, read_leases
from pipeline.datasets.samples import read_samples
from pipeline.datasets.versions import Version, latest, read_rows, read_version, run_store
from pipeline.run.commit import committed
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store
from tests.support.runs import EXAMPLES, FEW_STEPS, SAMPLES, make_faces
from tests.support.servers import SERVERS, reached

FACES = sorted(SAMPLES.glob("*.png"))
QUICK = "from pipeline.datasets import leases; leases.HEARTBEAT_SECONDS = 0.3; leases.EXPIRY_SECONDS = 3.0;"
DRIVER = [sys.executable, "-c", f"{QUICK} from jobs.cli.app import main; main()"]
"""`asyrp` with a lease that expires soon."""


@pytest.fixture
def bucket(tmp_path, request) -> Iterator[str]:
    """An empty bucket on a server of S3, for this process and those that it starts."""
    with SERVERS["moto"](tmp_path, request.config.cache.mkdir("servers")) as server, reached(server):
        yield server.bucket


def write_job(path: Path, **changes: Any) -> Path:
    """The file of a job that is quickly done."""
    run = {"edits": ["glasses=1"], "shard_size": 1, "engine": {"check": False}, **FEW_STEPS, **changes.pop("run")}
    path.write_text(yaml.safe_dump({"name": "faces", "run": run, **changes}))
    return path


class Day:
    """A scheduler at work, and what comes of it."""

    def __init__(self, path: Path) -> None:
        self.job = load_job(path)
        self.store = Store(self.job.root)
        self.scheduled = ScheduledJob(self.job, lambda tick: self._start(path, tick), datetime.now(UTC))
        self.process: subprocess.Popen[bytes] | None = None

    def _start(self, path: Path, tick: datetime) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen([*DRIVER, "jobs", "run", str(path), "--tick", tick.isoformat()])
        return self.process

    def go_on_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not happened():
            assert time.monotonic() < deadline, "the day does not get on"
            time.sleep(min(self.scheduled.step(datetime.now(UTC)), 0.1))

    def has_committed(self) -> bool:
        lease = last_lease(self.store)
        run = lease.facts.get("run") if lease is not None and lease.ended_at is None else None
        return run is not None and bool(committed(run_store(self.store, run), "boost"))

    def shows(self, source: str) -> Callable[[], bool]:
        """Whether the newest version has what the source has, and nothing else."""

        def is_so() -> bool:
            version = latest(self.store)
            has = {(row["key"], row["source_etag"]) for row in read_rows(self.store, version)} if version else set()
            return has == {(image.key, image.etag) for image in list_images(source)}

        return is_so

    def end(self) -> None:
        self.scheduled.stop()
        self.scheduled.wait()


def check_whole(store: Store, version: Version) -> None:
    """Every image of a version is there, as it was committed, and only once."""
    rows = [(run_store(store, row["run"]), row) for row in read_rows(store, version)]
    assert len({row["key"] for _, row in rows}) == len(rows) == version.images
    samples = list(read_samples(rows, with_source=False))
    assert version.rows == {"ok": len(rows)} and all(sample.edited for sample in samples)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_day_in_the_life_of_a_job(bucket, tmp_path, cli):
    source, fs = f"{bucket}/faces", fsspec.filesystem("s3")

    def put(name: str, face: int) -> None:
        fs.pipe_file(f"bucket/faces/{name}", FACES[face].read_bytes())

    for number in range(6):
        put(f"{number}.png", number)
    path = write_job(
        tmp_path / "job.yaml",
        root=f"{bucket}/job",
        run={"source": source},
        schedule={"cron": "*/2 * * * * *"},
    )
    day = Day(path)
    day.go_on_until(day.has_committed)
    assert day.process is not None
    code, out, err = cli("jobs", "run", path, "--json")
    assert code == 0, err
    assert json.loads(out)["outcome"] == "skipped" and "is at work on tick" in json.loads(out)["message"]
    day.process.kill()
    assert latest(day.store) is None, "never half"
    day.go_on_until(day.shows(source))
    first = latest(day.store)
    put("6.png", 6)
    put("7.png", 7)
    put("2.png", 8)
    fs.rm_file("bucket/faces/4.png")
    day.go_on_until(day.shows(source))
    fs.rm_file("bucket/faces/5.png")
    day.go_on_until(day.shows(source))
    day.end()

    last = latest(day.store)
    versions = [read_version(day.store, number) for number in range(1, last.number + 1)]
    for version in versions:
        check_whole(day.store, version)
    assert versions[0] == first and first.images == 6 and last.images == 6 and last.run is None
    edited = Counter(
        (row["key"], row["source_etag"], row["attempt"])
        for version in versions
        for row in read_rows(day.store, version)
    )
    assert len(edited) == 9, "six, two that came, one that changed: each edited once"
    check_history(day.store, versions)
    code, out, err = cli("export", day.store.url, "--to", "parquet", "-o", tmp_path / "set", "--with-source", "--json")
    assert code == 0, err
    assert len(datasets.load_dataset(str(tmp_path / "set"), split="train")) == 6
    code, out, err = cli("jobs", "status", path, "--json")
    facts = json.loads(out)
    assert facts["version"]["number"] == last.number and facts["at_work"] is None and len(facts["next_ticks"]) == 5


def check_history(store: Store, versions: list[Version]) -> None:
    """One driver died and the next made the version of its tick; every version is of one tick, all others had none."""
    history = list(reversed(list(read_leases(store))))
    [killed] = [lease for lease in history if lease.ended_at is None]
    successor = history[history.index(killed) + 1]
    assert successor.tick == killed.tick == versions[0].tick
    made = [lease for lease in history if lease.facts.get("version")]
    assert [lease.facts["version"] for lease in made] == [version.number for version in versions]
    assert {lease.outcome for lease in history if lease not in (killed, *made)} <= {"unchanged"}
    assert len({lease.tick for lease in history}) == len(history) - 1


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_a_job_that_is_cancelled_stops_with_what_is_in_flight_and_the_next_tick_goes_on(tmp_path, monkeypatch, cli):
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.1)
    path = write_job(
        tmp_path / "job.yaml", root=str(tmp_path / "job"), run={"source": str(make_faces(tmp_path / "faces", 30))}
    )
    store = Store(str(tmp_path / "job"))

    def cancel() -> None:
        while not (lease := last_lease(store)) or not committed(
            run_store(store, lease.facts.get("run", "none")), "boost"
        ):
            time.sleep(0.02)
        assert cli("jobs", "cancel", path)[0] == 0

    canceller = threading.Thread(target=cancel)
    canceller.start()
    result = run_tick(load_job(path), datetime(2026, 5, 1, tzinfo=UTC))
    canceller.join()
    assert (result.outcome, result.exit_code) == ("drained", 130) and latest(store) is None
    before = committed(run_store(store, result.run), "boost")
    assert 0 < len(before) < 30
    code, out, err = cli("jobs", "run", path, "--json")
    assert code == 0, err
    assert json.loads(out)["outcome"] == "unchanged", "what there was to do, the tick before has done"
    version = latest(store)
    assert version.tick == result.tick and version.images == 30
    check_whole(store, version)
    code, out, _ = cli("jobs", "history", tmp_path / "job", "--json")
    assert [entry["outcome"] for entry in json.loads(out)] == ["drained", "succeeded", "unchanged"]
    assert cli("jobs", "run", path, "--tick", "2026-05-01T00:00:00+00:00", "--json")[0] == 0
    assert latest(store) == version, "a tick that is done is not done again"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run_as_they_stand(example, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    Path("portraits").mkdir()
    for face in FACES[:2]:
        shutil.copy(face, "portraits")
    code, out, err = cli("jobs", "run", example, "--json")
    assert code == 0, err
    job, told = load_job(example), json.loads(out)
    assert told["outcome"] == "succeeded" and told["changes"]["new"] == 2
    store = Store(job.root)
    rows = list(read_rows(store, latest(store)))
    assert {row["edit"] for row in rows} == {edit.name for edit in job.run.parsed_edits()}
    assert all(row["status"] == "ok" for row in rows)
    if job.notify is not None:
        assert json.loads(Path("last-tick.json").read_text()) == {"job": job.name, "root": job.root, **told}


def test_a_source_that_fails_or_is_empty_all_of_a_sudden_leaves_the_data_set_as_it_is(tmp_path, cli):
    path = write_job(tmp_path / "job.yaml", root=str(tmp_path / "job"), run={"source": str(tmp_path / "faces")})
    code, _, err = cli("jobs", "run", path)
    assert code == 2 and "faces" in err and "Traceback" not in err
    (tmp_path / "faces").mkdir()
    code, out, _ = cli("jobs", "run", path)
    assert code == 0 and "unchanged" in out
    code, out, _ = cli("jobs", "history", path, "--json")
    assert [entry["outcome"] for entry in json.loads(out)] == ["failed", "unchanged"]
    assert "faces" in json.loads(out)[0]["message"]


def test_two_jobs_do_not_share_a_root(tmp_path, cli):
    (tmp_path / "faces").mkdir()
    run = {"source": str(tmp_path / "faces")}
    first = write_job(tmp_path / "a.yaml", root=str(tmp_path / "job"), run=run)
    second = write_job(tmp_path / "b.yaml", root=str(tmp_path / "job"), run=run, name="others")
    assert cli("jobs", "run", first)[0] == 0
    code, _, err = cli("jobs", "run", second)
    assert code == 2 and "is called faces, not others" in err


def test_the_commands_speak_of_what_they_cannot_do(tmp_path, cli):
    path = write_job(tmp_path / "job.yaml", root=str(tmp_path / "job"), run={"source": "s3://nowhere/faces"})
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: x\nroot: y\nrun: {source: z, edit: [glasses=1]}\n")
    for arguments, sentence in {
        ("status", path): "there is no job at",
        ("history", tmp_path / "none"): "there is no job at",
        ("cancel", path): "there is no job at",
        ("run", path, "--tick", "yesterday"): "--tick yesterday: write it as 2026-11-21T02:30",
        ("run", path, "--tick", "2999-01-01"): "--tick 2999-01-01 is still to come",
        ("run", tmp_path / "none.yaml"): "cannot read",
        ("validate", path, wrong): "wrong.yaml:3: unknown field 'run.edit': did you mean 'edits'?",
        ("schedule", "serve", path): "the job faces has no schedule",
    }.items():
        code, _, err = cli("jobs", *arguments)
        assert code == 2 and sentence in err.replace("\n", " ") and "Traceback" not in err, err
    assert cli("jobs", "validate", path)[0] == 0
    code, out, _ = cli("jobs", "show", path, "--json")
    assert code == 0 and Job.model_validate(json.loads(out)["job"]) == load_job(path)


def test_a_webhook_and_a_command_are_told_and_their_failure_is_only_reported(httpserver, tmp_path, monkeypatch):
    facts = {"outcome": "failed", "job": "faces"}
    httpserver.expect_ordered_request("/hook", method="POST", json=facts).respond_with_data("")
    monkeypatch.setenv("HOOK", httpserver.url_for("/hook"))
    told = Notifications(webhook="$HOOK", command=["tee", str(tmp_path / "told")])
    assert notify(told, facts) == []
    httpserver.check()
    assert json.loads((tmp_path / "told").read_text()) == facts
    assert notify(told, {**facts, "outcome": "unchanged"}) == []
    broken = Notifications(webhook=httpserver.url_for("/none"), command=["sh", "-c", "echo no room >&2; exit 3"])
    assert notify(broken, facts) == [
        "the webhook at http://localhost was not told: it answered 500",
        "the command 'sh' was not told: exit code 3: no room",
    ]
    gone = Notifications(webhook="$NOWHERE", command=["no-such-program"])
    assert len(notify(gone, facts)) == 2


def test_a_scheduler_starts_processes_and_stops_with_them(tmp_path):
    (tmp_path / "faces").mkdir()
    path = write_job(
        tmp_path / "job.yaml",
        root=str(tmp_path / "job"),
        run={"source": str(tmp_path / "faces")},
        schedule={"cron": "* * * * * *"},
    )
    command = [sys.executable, "-m", "jobs", "jobs", "schedule", "serve", str(path)]
    scheduler = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    deadline = time.monotonic() + 100
    while not any(lease.outcome == "unchanged" for lease in read_leases(Store(str(tmp_path / "job")))):
        assert time.monotonic() < deadline and scheduler.poll() is None
        time.sleep(0.1)
    scheduler.terminate()
    _, said = scheduler.communicate(timeout=60)
    assert scheduler.returncode == 0 and "Traceback" not in said and "faces: tick 20" in said
