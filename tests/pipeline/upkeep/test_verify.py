"""`asyrp verify` finds what was broken on purpose; `asyrp gc` deletes what no commit names and nothing else."""

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from asyrp.errors import UserError
from jobs.runs.record import open_run, recorded_plan, recorded_sizes, recorded_stages
from jobs.runs.resolve import resolve
from jobs.runs.run_file import read_run
from pipeline.images.source import SourceImage
from pipeline.run import manifest
from pipeline.run.additions import Addition, add, read_additions, read_shard
from pipeline.run.commit import Attempt, AttemptGone, committed, read_commit
from pipeline.run.plan import write_parts
from pipeline.storage.store import Store
from pipeline.upkeep import garbage
from pipeline.upkeep.garbage import collect_garbage, find_garbage
from pipeline.upkeep.verify import Verification, verify
from tests.support.runs import make_faces, run_here, spec, stand_in_run, stand_in_stages

IMAGES = 12  # in shards of 5, 5 and 2
EDITS = ["glasses=1", "smile=-0.5"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A fused and a staged run of twelve images, one of them broken."""
    folder = tmp_path_factory.mktemp("verify")
    source = make_faces(folder / "faces", IMAGES)
    (source / "0007.png").write_bytes(b"broken")
    stand_in_run(source, folder / "fused", preview=3)
    stand_in_run(source, folder / "staged", preview=3, stages="staged")
    return folder


@pytest.fixture
def root(made, tmp_path) -> Callable[[str], Path]:
    """A copy of the run, to be broken."""
    return lambda name: shutil.copytree(made / name, tmp_path / name)


def check(root: Path | str, deep: bool = False) -> Verification:
    store = Store(str(root))
    record = read_run(store)
    return verify(store, recorded_plan(record), recorded_stages(record), recorded_sizes(record), deep)


def only(report: Verification) -> str:
    """The message of the only finding."""
    [finding] = report.findings
    assert not report.whole
    return finding.message


def outputs(root: Path, shard: int = 1) -> list[Path]:
    return sorted((root / "data" / "boost").glob(f"{shard:06d}.*/*.png"))


def manifest_of(root: Path, shard: int = 1) -> Path:
    [path] = (root / "manifest" / "boost").glob(f"{shard:06d}.*")
    return path


REDO = ": delete commit/boost/000001.json and give the run's command again"

# Whole runs


@pytest.mark.parametrize("name", ["fused", "staged"])
@pytest.mark.parametrize("deep", [(), ("--deep",)])
def test_a_finished_run_is_whole_and_a_broken_image_is_no_damage(cli, made, name, deep):
    code, out, _ = cli("verify", made / name, "--json", *deep)
    report = json.loads(out)
    assert code == 0 and report["whole"] and report["findings"] == [] and report["garbage"]["files"] == 0
    assert report["stages"]["boost"]["rows"] == {"ok": 22, "decode_error": 2}
    commits = [json.loads(path.read_text()) for path in (made / name / "commit").rglob("*.json")]
    assert report["files"] == sum(len(commit["files"]) for commit in commits)
    assert report["bytes"] == sum(file["bytes"] for commit in commits for file in commit["files"])


def test_a_run_in_memory_is_verified_as_one_on_a_disk(faces):
    store = stand_in_run(faces(6), f"memory://{uuid.uuid4().hex}", preview=2)
    assert check(store.url, deep=True).whole
    store.delete(read_commit(store, "boost", 1).files[0].path)
    assert "missing" in only(check(store.url))
    MemoryFileSystem.store.clear()


def test_a_run_that_uses_the_inversions_of_another_is_held_against_them(root, tmp_path):
    theirs = root("staged")
    record = read_run(Store(str(theirs)))
    stand_in_run(record["spec"]["source"], tmp_path / "again", inversions=str(theirs), stages="staged")
    assert check(tmp_path / "again", deep=True).whole
    (theirs / "commit" / "invert" / "000001.json").unlink()
    assert "edit shard 1: the commit of invert that it was made from is gone" in only(check(tmp_path / "again"))


def test_verify_of_no_run_is_one_sentence(cli, tmp_path):
    code, _, err = cli("verify", tmp_path)
    assert code == 2 and "there is no run at" in err


# What is missing


def test_shards_without_a_commit_are_missing(cli, root):
    run = root("fused")
    for shard in (0, 2):
        (run / "commit" / "boost" / f"{shard:06d}.json").unlink()
    code, out, _ = cli("verify", run)
    assert code == 3
    assert "missing: boost: 2 of 3 shards are not committed (0, 2): give the run's command again" in out
    [finding] = check(run).findings
    assert (finding.kind, finding.stage, finding.shards) == ("missing", "boost", (0, 2))


def test_a_run_that_has_not_begun_lacks_all_of_its_shards(root):
    run = root("fused")
    for folder in ("commit", "data", "manifest", "progress"):
        shutil.rmtree(run / folder)
    assert [finding.shards for finding in check(run).findings] == [(0, 1, 2), (0,)]


# What is damaged


def delete_an_image(run: Path) -> str:
    outputs(run)[0].unlink()
    return f"boost shard 1: {outputs_name(run)}/0005_glasses_1.png is missing"


def delete_all_images(run: Path) -> str:
    folder = outputs_name(run)
    shutil.rmtree(run / folder)
    return f"boost shard 1: {folder}/0005_glasses_1.png and 7 more are missing"


def outputs_name(run: Path) -> str:
    return outputs(run)[0].parent.relative_to(run).as_posix()


def truncate_images(run: Path) -> str:
    for path in outputs(run)[:2]:
        path.write_bytes(path.read_bytes()[:-1])
    return f"{outputs_name(run)}/0005_glasses_1.png and 1 more are not of the size that the commit says"


def delete_the_manifest(run: Path) -> str:
    path = manifest_of(run)
    path.unlink()
    return f"{path.relative_to(run).as_posix()} is missing"


def edit_the_manifest(run: Path) -> str:
    path = manifest_of(run)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    return f"{path.relative_to(run).as_posix()} is not what was committed"


def truncate_the_commit(run: Path) -> str:
    path = run / "commit" / "boost" / "000001.json"
    path.write_bytes(path.read_bytes()[:200])
    return "boost shard 1: its commit cannot be read"


@pytest.mark.parametrize(
    "damage",
    [
        delete_an_image,
        delete_all_images,
        truncate_images,
        delete_the_manifest,
        edit_the_manifest,
        truncate_the_commit,
    ],
)
def test_damage_is_one_sentence_that_says_what_where_and_what_to_do(cli, root, damage):
    run = root("fused")
    expected = damage(run)
    code, out, _ = cli("verify", run, "--json")
    [finding] = json.loads(out)["findings"]
    assert code == 3 and (finding["kind"], finding["stage"], finding["shards"]) == ("damaged", "boost", [1])
    assert expected in finding["message"] and finding["message"].endswith(REDO)


def test_what_a_finding_says_to_do_mends_the_run(root):
    run = root("fused")
    delete_all_images(run)
    (run / "commit" / "boost" / "000001.json").unlink()
    resolved = resolve(spec(read_run(Store(str(run)))["spec"]["source"], run, edits=EDITS, shard_size=5, preview=3))
    run_here(resolved, make=stand_in_stages)
    assert check(run, deep=True).whole


def test_a_flipped_byte_is_found_by_reading_deeply_only(root):
    run = root("fused")
    path = outputs(run)[3]
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert check(run).whole
    name = path.relative_to(run).as_posix()
    assert f"{name} is not what was committed: the SHA-256 differs{REDO}" in only(check(run, deep=True))


def test_flipped_latents_are_found_by_reading_deeply(root):
    run = root("staged")
    [path] = (run / "data" / "edit").glob("000000.*/latents.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "edit shard 0" in only(check(run, deep=True))


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1 nonsense")])
def test_a_plan_that_is_not_the_recorded_one_is_the_only_finding(root, harm):
    run = root("fused")
    [part] = run.glob("plan/*/part-00000.parquet")
    harm(part)
    delete_an_image(run)
    assert only(check(run)).startswith("plan/ is not what run.json was written with")


def test_a_commit_beyond_the_plan_is_told(root):
    run = root("fused")
    shutil.copy(run / "commit" / "boost" / "000001.json", run / "commit" / "boost" / "000009.json")
    assert only(check(run)) == "commit/boost/000009.json is of no shard of the plan: delete it"


def test_a_stage_made_from_a_commit_that_was_replaced_is_told(root):
    run = root("staged")
    (run / "commit" / "edit" / "000001.json").unlink()
    messages = [finding.message for finding in check(run).findings]
    assert messages[0].startswith("edit: 1 of 3 shards are not committed (1)")
    assert messages[1:] == [f"boost shard 1: the commit of edit that it was made from is gone{REDO}"]
    resolved = resolve(
        spec(read_run(Store(str(run)))["spec"]["source"], run, edits=EDITS, shard_size=5, preview=3, stages="staged")
    )
    edit = [stage for stage in resolved.stages if stage.name == "edit"]
    run_here(resolved, make=stand_in_stages, stages=edit)
    assert only(check(run)) == f"boost shard 1: it was made from another commit of edit than there is now{REDO}"


# What only a fault of ours would write: commits that are as they were made, and wrong


def recommit(run: Path, change: Callable[[list[manifest.Row], Attempt], Any]) -> None:
    """Commit shard 1 again, with its rows and files changed."""
    store = Store(str(run))
    commit = read_commit(store, "boost", 1)
    rows = manifest.from_bytes(store.read(commit.manifest))
    attempt = Attempt(store, "boost", 1)
    for row in rows:
        if row["output_uri"]:
            row["output_uri"] = attempt.write(Path(row["output_uri"]).name, store.read(row["output_uri"])).path
    change(rows, attempt)
    store.delete("commit/boost/000001.json")
    assert attempt.commit(rows, commit.images, None)


def test_a_row_of_the_plan_that_is_in_no_manifest_is_told(root):
    run = root("fused")
    recommit(run, lambda rows, _: rows.pop(1))
    assert "its manifest lacks 1 row (0005.png, smile -0.5) of the plan" in only(check(run))


def test_a_row_that_is_there_twice_is_told(root):
    run = root("fused")
    recommit(run, lambda rows, _: rows.append(rows[2]))
    assert "its manifest has 1 row (0006.png, glasses 1) more than the plan" in only(check(run))


def test_an_output_that_no_commit_names_is_told(root):
    run = root("fused")
    recommit(run, lambda _, attempt: attempt.files.pop(0))
    assert "outputs in 1 row (the first is 0005.png) are not files of its commit" in only(check(run))


def test_an_image_without_output_that_claims_to_be_edited_is_told(root):
    run = root("fused")
    recommit(run, lambda rows, _: rows[0].update(output_uri=None))
    assert "outputs in 1 row " in only(check(run))


def test_a_committed_output_that_is_no_image_is_found_by_decoding(root):
    def spoil(rows: list[manifest.Row], attempt: Attempt) -> None:
        file = attempt.write("spoiled.png", b"no image")
        rows[0].update(output_uri=file.path, output_sha256=file.sha256, output_bytes=file.bytes)

    run = root("fused")
    recommit(run, spoil)
    assert check(run).whole
    assert "spoiled.png is committed, but cannot be decoded" in only(check(run, deep=True))


def test_counts_that_differ_from_the_manifest_are_told(root):
    run = root("fused")
    path = run / "commit" / "boost" / "000001.json"
    path.write_text(path.read_text().replace('"ok": 8', '"ok": 9'))
    assert "its commit counts other images or statuses" in only(check(run))


# Garbage


def leave(run: Path | str, shard: int = 1, age: float = 7200, manifest_age: float | None = None) -> Attempt:
    """What an actor leaves that is killed before its commit: an image, and with `manifest_age` a manifest too."""
    attempt = Attempt(Store(str(run)), "boost", shard)
    attempt.write("a/left.png", b"pixels")
    set_age(run / attempt.folder / "a" / "left.png", age)
    if manifest_age is not None:
        attempt.store.write(attempt.manifest, b"rows")
        set_age(run / attempt.manifest, manifest_age)
    return attempt


def set_age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def stages_of(run: Path) -> list[str]:
    return list(recorded_sizes(read_run(Store(str(run)))))


def test_gc_deletes_what_a_killed_actor_left_and_keeps_what_is_committed(cli, root):
    run = root("fused")
    dead = leave(run, manifest_age=7200)
    (run / "manifest" / "boost" / ".0123.tmp").write_bytes(b"torn")
    set_age(run / "manifest" / "boost" / ".0123.tmp", 7200)
    assert json.loads(cli("verify", run, "--json")[1])["garbage"] == {"attempts": 2, "files": 3, "bytes": 14}
    code, out, _ = cli("gc", run, "--json")
    assert code == 0 and json.loads(out)["freed"] == {"attempts": 2, "files": 3, "bytes": 14}
    assert not (run / dead.folder).exists() and not (run / dead.manifest).exists()
    assert check(run, deep=True).whole and find_garbage(Store(str(run)), stages_of(run)) == []


def test_garbage_does_not_make_a_run_less_whole(cli, root):
    run = root("fused")
    leave(run)
    code, out, _ = cli("verify", run)
    assert code == 0 and f"nothing names 1 file of 1 attempt, 6 bytes: asyrp gc {run} deletes them" in out


def test_gc_keeps_an_attempt_that_was_written_to_lately(cli, root):
    run = root("fused")
    young, almost = leave(run, age=60), leave(run, manifest_age=60)
    code, out, _ = cli("gc", run)
    assert code == 0 and "freed 0 files" in out and "kept 3 files of 2 attempts" in out and "younger than 1h" in out
    assert (run / young.folder).exists() and (run / almost.folder).exists()
    assert cli("gc", run, "--older-than", "30s")[0] == 0
    assert not (run / young.folder).exists() and not (run / almost.folder).exists()


@contextmanager
def heartbeats(run: Path, actor: str, clock: float, shard: int, interval: float | None = 0.05) -> Iterator[None]:
    """The heartbeats of an actor that has a shard in flight and whose clock is `clock` seconds ahead. Without an
    interval there is one heartbeat, and then the actor is dead."""
    stopped = threading.Event()

    def beat() -> None:
        flight = {"stage": "boost", "shard": shard, "done": 3}
        state = {"actor": actor, "closed": False, "updated": time.time() + clock, "in_flight": [flight]}
        Store(str(run)).write(f"progress/{actor}.json", json.dumps(state).encode())

    def beat_on() -> None:
        while interval is not None and not stopped.wait(interval):
            beat()

    beat()
    thread = threading.Thread(target=beat_on)
    thread.start()
    yield
    stopped.set()
    thread.join()


@pytest.fixture
def short_watch(monkeypatch):
    monkeypatch.setattr(garbage, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(garbage, "POLL_SECONDS", 0.05)


@pytest.mark.usefixtures("short_watch")
@pytest.mark.parametrize("clock", [0, -7200, 7200], ids=["right", "two hours behind", "two hours ahead"])
def test_gc_leaves_an_actor_at_work_alone_whatever_the_age_and_the_clocks(root, clock):
    run = root("fused")
    busy, dead, other = leave(run, shard=1), leave(run, shard=2), leave(run, shard=0)
    with heartbeats(run, "busy", clock, shard=1), heartbeats(run, "dead", clock, shard=2, interval=None):
        collect_garbage(Store(str(run)), stages_of(run), older_than=0)
    assert (run / busy.folder).exists()
    assert not (run / dead.folder).exists() and not (run / other.folder).exists()


@pytest.mark.parametrize("clock", [-7200, 7200], ids=["two hours behind", "two hours ahead"])
def test_the_age_of_an_attempt_is_told_by_the_clock_of_the_store_alone(root, clock, monkeypatch):
    run = root("fused")
    now = time.time
    young, old = leave(run, age=60), leave(run, age=5000)
    monkeypatch.setattr(time, "time", lambda: now() + clock)
    collect_garbage(Store(str(run)), stages_of(run), older_than=3600)
    assert (run / young.folder).exists() and not (run / old.folder).exists()
    assert not list(run.glob(".probe-*"))


@pytest.mark.parametrize("clock", [-7200, 7200], ids=["two hours behind", "two hours ahead"])
def test_gc_with_a_wrong_clock_costs_a_run_at_work_nothing(made, tmp_path, clock, monkeypatch):
    now, run = time.time, tmp_path / "out"
    resolved = resolve(spec(made / "faces", run, edits=EDITS, shard_size=2))
    store = Store(str(run))
    open_run(store, resolved)
    write, collected, lock = Store.write, [], threading.Lock()

    def collecting(self: Store, name: str, data: bytes) -> None:
        write(self, name, data)
        if not name.startswith("data/"):
            return
        with lock, monkeypatch.context() as patch:
            if len(collected) < 6:
                patch.setattr(time, "time", lambda: now() + clock)
                collected.append(collect_garbage(Store(str(run)), stages_of(run), older_than=3600).freed)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", collecting)
        patch.setattr(garbage, "WATCH_SECONDS", 0.0)  # the heartbeats count for nothing here
        run_here(resolved, make=stand_in_stages)
    assert len(collected) == 6 and not any(collected)
    assert check(run, deep=True).whole


def test_an_attempt_whose_files_were_deleted_is_not_committed_and_leaves_nothing(made, tmp_path):
    resolved = resolve(spec(made / "faces", tmp_path / "out", edits=EDITS, shard_size=IMAGES))
    store = Store(resolved.spec.output)
    open_run(store, resolved)

    def deleting() -> dict[str, Any]:
        functions = stand_in_stages()

        def fused(batch, keys):
            for file in (tmp_path / "out" / "data" / "boost").glob("*/0000_*.png"):
                file.unlink()
            return functions["fused"](batch, keys)

        return {**functions, "fused": fused}

    with pytest.raises(AttemptGone, match=r"was deleted at .* before its shard was committed"):
        run_here(resolved, batch_size=4, make=deleting)
    assert not committed(store, "boost") and not store.files("data") and not store.files("manifest")
    run_here(resolved, make=stand_in_stages)
    assert check(tmp_path / "out", deep=True).whole


def test_a_listing_that_is_late_does_not_cost_an_attempt(root, monkeypatch):
    run = root("fused")
    store = Store(str(run))
    store.delete("commit/boost/000001.json")
    attempt = Attempt(store, "boost", 1)
    attempt.write("x.png", b"pixels")
    monkeypatch.setattr(store, "files", lambda _: [])
    assert attempt.commit([{"key": "x", "shard": 1, "row": 0, "stage": "boost", "status": "ok"}], 1, None)


def test_gc_deletes_the_hidden_files_of_writes_that_were_killed(cli, root):
    run = root("fused")
    places = ["", "report/", "progress/", "commit/boost/", "commit/reconstruct/"]
    torn = [run / f"{place}.{uuid.uuid4().hex}.tmp" for place in places] + [run / f".probe-{uuid.uuid4().hex}"]
    for path in torn:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"torn")
    assert json.loads(cli("gc", run, "--json")[1])["young"]["files"] == len(torn)
    for path in torn:
        set_age(path, 7200)
    assert json.loads(cli("gc", run, "--json")[1])["freed"]["files"] == len(torn)
    assert not any(path.exists() for path in torn) and check(run, deep=True).whole


def test_gc_deletes_what_a_killed_export_left_and_nothing_else(cli, root, tmp_path):
    run, output = root("fused"), tmp_path / "set"
    assert cli("export", run, "--to", "imagefolder", "-o", output)[0] == 0
    before = set(output.rglob("*"))
    folder = next(path.parent for path in output.rglob("*.png"))
    torn = [output / f".{uuid.uuid4().hex}.tmp", folder / f".{uuid.uuid4().hex}.tmp"]
    for path in torn:
        path.write_bytes(b"torn")
        set_age(path, 7200)
    assert json.loads(cli("gc", output, "--json")[1])["freed"]["files"] == 2
    assert set(output.rglob("*")) == before


def test_gc_deletes_a_link_and_not_what_it_leads_to(cli, root, tmp_path):
    run, victim = root("fused"), tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"mine")
    (run / "data" / "boost" / "000001.0123").symlink_to(victim)
    code, out, _ = cli("gc", run, "--older-than", "0")
    assert code == 0 and "data/boost/000001.0123" in out
    assert (victim / "file").exists() and not (run / "data" / "boost" / "000001.0123").is_symlink()


def test_gc_refuses_a_folder_that_is_a_link_out_of_the_root(cli, root, tmp_path):
    run = root("fused")
    (run / "data" / "boost").rename(tmp_path / "victim")
    before = set((tmp_path / "victim").rglob("*"))
    (run / "data" / "boost").symlink_to(tmp_path / "victim")
    code, _, err = cli("gc", run, "--older-than", "0")
    assert code == 2 and "outside the root" in err.replace("\n", " ")
    assert set((tmp_path / "victim").rglob("*")) == before


@pytest.mark.parametrize("stage", ["../../victim", "/victim", "", ".", "boost/..", "a b"])
def test_gc_deletes_nothing_for_a_stage_that_is_no_name(cli, root, tmp_path, stage):
    run, victim = root("fused"), tmp_path / "victim" / "file"
    victim.parent.mkdir()
    victim.write_bytes(b"mine")
    record = read_run(Store(str(run)))
    for stages in ({stage: [10, 40], "boost": [3, 12]}, [*record["stages"], {**record["stages"][0], "name": stage}]):
        (run / "run.json").write_text(json.dumps({**record, "format": 1 + isinstance(stages, list), "stages": stages}))
        before = sorted(tmp_path.rglob("*"))
        code, _, err = cli("gc", run, "--older-than", "0")
        assert code == 2 and "run.json" in err and "is damaged" in err
        assert sorted(tmp_path.rglob("*")) == before


def test_gc_honours_a_commit_that_is_made_while_it_looks(root, monkeypatch):
    run = root("fused")
    (run / "commit" / "boost" / "000001.json").unlink()
    late, store = leave(run), Store(str(run))
    entries = store.entries

    def entries_then_commit(folder):
        found = entries(folder)
        if folder == "manifest/boost":
            assert late.commit([{"key": "x", "shard": 1, "row": 0, "stage": "boost", "status": "ok"}], 1, None)
        return found

    monkeypatch.setattr(store, "entries", entries_then_commit)
    collect_garbage(store, stages_of(run), older_than=0)
    assert all((run / file.path).exists() for file in late.files)


def test_gc_touches_no_attempt_at_a_shard_whose_commit_cannot_be_read(root):
    run = root("fused")
    truncate_the_commit(run)
    dead = leave(run)
    collect_garbage(Store(str(run)), stages_of(run), older_than=0)
    assert (run / dead.folder).exists() and len(outputs(run)) == 8


def add_parts(run: Path, age: float = 7200) -> Path:
    """What `extend` leaves that is killed before its record."""
    folder = run / "additions" / "parts" / uuid.uuid4().hex[:12]
    write_parts(
        Store(str(run)), [SourceImage("new.png", "/nowhere/new.png")], 5, folder.relative_to(run).as_posix(), 1024
    )
    set_age(folder / "part-00000.parquet", age)
    return folder


def test_gc_deletes_the_parts_of_an_addition_without_a_record_and_keeps_those_of_another(cli, root):
    run = root("fused")
    store = Store(str(run))
    kept = add(store, "extend", [SourceImage("kept.png", "/nowhere/kept.png")], planned=3, shard_size=5, replaces={})
    set_age(run / kept.parts[0].path, 7200)
    dead = add_parts(run)
    (run / "additions" / ".0123.tmp").write_bytes(b"torn")
    set_age(run / "additions" / ".0123.tmp", 7200)
    assert json.loads(cli("verify", run, "--json")[1])["garbage"]["files"] == 2
    code, out, _ = cli("gc", run)
    assert code == 0 and dead.relative_to(run).as_posix() in out
    assert not dead.exists() and not (run / "additions" / ".0123.tmp").exists()
    assert read_additions(store) == [kept] and [row.key for row in read_shard(store, 1024)] == ["kept.png"]


@pytest.mark.parametrize("flat", [False, True], ids=["now", "as an earlier version planned"])
def test_gc_deletes_a_plan_that_lost_and_keeps_the_one_that_counts(root, flat):
    run = root("fused")
    store = Store(str(run))
    record = read_run(store)
    if flat:
        for part in (run / record["plan"]["folder"]).iterdir():
            part.rename(run / "plan" / part.name)
        (run / record["plan"]["folder"]).rmdir()
        record["plan"] |= {"folder": "plan", "parts": []}
        (run / "run.json").write_text(json.dumps(record))
        assert collect_garbage(store, stages_of(run), older_than=0).freed == []
    else:
        write_parts(store, [SourceImage("x.png", "/nowhere")], 5, "plan/0123456789ab")
        assert [g.names for g in collect_garbage(store, stages_of(run), older_than=0).freed] == [("plan/0123456789ab",)]
    assert check(run, deep=True).whole


def test_gc_leaves_an_addition_alone_that_is_being_made(root, monkeypatch):
    run = root("fused")
    store, young = Store(str(run)), add_parts(run, age=60)
    assert collect_garbage(store, stages_of(run), older_than=3600).freed == [] and young.exists()
    late: list[Addition] = []
    entries = store.entries

    def entries_then_record(folder):
        found = entries(folder)
        if folder == "additions/parts" and not late:
            late.append(
                add(
                    Store(str(run)),
                    "extend",
                    [SourceImage("late.png", "/nowhere")],
                    planned=3,
                    shard_size=5,
                    replaces={},
                )
            )
        return found

    monkeypatch.setattr(store, "entries", entries_then_record)
    collect_garbage(store, stages_of(run), older_than=0)
    assert not young.exists() and (run / late[0].parts[0].path).exists()


def test_parts_of_an_addition_that_are_gone_are_told(root):
    run = root("fused")
    added = add(
        Store(str(run)), "extend", [SourceImage("new.png", "/nowhere/new.png")], planned=3, shard_size=5, replaces={}
    )
    (run / added.parts[0].path).unlink()
    assert only(check(run)) == f"{added.parts[0].path} is missing: bring it back from a copy"


def test_a_dry_run_of_gc_deletes_nothing(cli, root):
    run = root("fused")
    dead = leave(run)
    code, out, _ = cli("gc", run, "--dry-run")
    assert code == 0 and "would free 1 file of 1 attempt" in out and dead.folder in out
    assert (run / dead.folder).exists()


def test_gc_works_on_a_store_in_memory(faces):
    store = stand_in_run(faces(6), f"memory://{uuid.uuid4().hex}")
    attempt = Attempt(store, "boost", 0)
    file = attempt.write("x.png", b"pixels")
    assert collect_garbage(store, ["boost"], older_than=60).freed == [] and store.exists(file.path)
    assert len(collect_garbage(store, ["boost"], older_than=0).freed) == 1 and not store.exists(file.path)
    assert check(store.url, deep=True).whole
    MemoryFileSystem.store.clear()


def test_on_a_store_without_times_gc_wants_to_be_told_that_no_run_is_at_work(root, monkeypatch):
    run = root("fused")
    dead = leave(run)
    info = LocalFileSystem.info

    def info_without_times(fs: LocalFileSystem, path: Any, **options: Any) -> dict[str, Any]:
        return {name: fact for name, fact in info(fs, path, **options).items() if name not in ("created", "mtime")}

    monkeypatch.setattr(LocalFileSystem, "info", info_without_times)
    with pytest.raises(UserError, match="does not say when its files were written"):
        collect_garbage(Store(str(run)), stages_of(run), older_than=3600)
    assert (run / dead.folder).exists()
    collect_garbage(Store(str(run)), stages_of(run), older_than=0)
    assert not (run / dead.folder).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{root}", "--older-than", "an hour"), "--older-than an hour: write a number and s, m, h or d"),
        (("nowhere",), "there is no run at"),
    ],
)
def test_a_mistake_in_gc_is_one_sentence_and_deletes_nothing(cli, root, arguments, message):
    run = root("fused")
    dead = leave(run)
    code, _, err = cli("gc", *(argument.replace("{root}", str(run)) for argument in arguments))
    assert code == 2 and message in err.replace("\n", " ") and (run / dead.folder).exists()
