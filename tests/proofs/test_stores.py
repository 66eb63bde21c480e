"""A whole run on real object stores on loopback: plan, kill, resume, verify, export, and what a store may be asked."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import fsspec
import pytest

from asyrp.errors import UserError
from jobs.runs.record import recorded_plan, recorded_sizes, recorded_stages
from jobs.runs.run_file import read_run
from pipeline.datasets.leases import Heartbeat, begin, read_leases, read_skipped, skip
from pipeline.datasets.versions import Version, latest, publish, read_rows, write_index
from pipeline.images.fetch import fetch
from pipeline.run.commit import Attempt, committed, read_commit
from pipeline.run.sinks import read_output
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store
from pipeline.upkeep.verify import verify
from tests.support.runs import ASYRP, SAMPLES, rows, stand_in_run
from tests.support.servers import SERVERS, reached

FACES = sorted(SAMPLES.glob("*.png"))[:12]
FLAGS = ("-e", "glasses=1", "--n-inv", "4", "--n-gen", "4", "--preview", "0", "--shard-size", "1", "--no-check")


@pytest.fixture(scope="module", params=SERVERS)
def server(request, tmp_path_factory):
    """A server with 12 faces below faces/ in its bucket, for this process and those that it starts."""
    folder, cache = tmp_path_factory.mktemp(request.param), request.config.cache.mkdir("servers")
    with SERVERS[request.param](folder, cache) as started, reached(started) as server:
        fs = fsspec.filesystem(server.protocol)
        for path in FACES:
            fs.pipe_file(f"bucket/faces/{path.name}", path.read_bytes())
        yield server


@pytest.fixture
def bucket(server):
    return server.bucket


def kill_a_run(command: list[str], store: Store) -> None:
    """Start a run and kill its driver once it has committed a shard."""
    driver = subprocess.Popen([*ASYRP, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 150
    while not committed(store, "boost"):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert len(committed(store, "boost")) < len(FACES)


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_a_killed_run_goes_on_and_commits_every_image_once(server, cli):
    root, store = f"{server.bucket}/out", Store(f"{server.bucket}/out")
    arguments = ["-s", f"{server.bucket}/faces", "-o", root, *FLAGS]
    code, out, err = cli("plan", *arguments, "--json")
    assert code == 0 and json.loads(out)["images"] == len(FACES) and not store.exists("plan")
    kill_a_run(["run", *arguments], store)
    # The actors of a cluster that is there already would not know the server's credentials.
    again = subprocess.run([*ASYRP, "run", *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    assert ("does not refuse" in again.stderr) is not server.honours_conditions
    found = rows(root)
    assert {key for key, _, _ in found} == {path.name for path in FACES}
    for row in found.values():
        assert row["status"] == "ok" and row["source_etag"]
        assert len(store.read(row["output_uri"])) == row["output_bytes"]
    code, verified, err = cli("verify", root, "--deep", "--json")
    assert code == 0, verified + err
    code, exported, err = cli(
        "export", root, "--to", "parquet", "-o", f"{server.bucket}/set", "--with-source", "--json"
    )
    assert code == 0, err
    shown = "".join((out, verified, exported, err, again.stdout, again.stderr, store.read("run.json").decode()))
    assert server.secret not in shown


def test_the_same_key_is_listed_and_fetched_from_a_store_as_from_a_folder(bucket):
    there, here = list(list_images(f"{bucket}/faces")), list(list_images(str(SAMPLES)))[: len(FACES)]
    assert [image.key for image in there] == [image.key for image in here]
    assert fetch(there[3]) == fetch(here[3])


@pytest.mark.parametrize("sink", ["webdataset", "parquet"])
def test_images_in_a_tar_or_table_on_a_store_are_the_same_as_on_a_disk(bucket, tmp_path, sink):
    here = stand_in_run(SAMPLES, tmp_path / "out", limit=4, shard_size=3)
    there = stand_in_run(f"{bucket}/faces", f"{bucket}/{sink}", limit=4, shard_size=3, sink=sink)
    found = {name: read_output(there, row) for name, row in rows(there.url).items()}
    assert found == {name: read_output(here, row) for name, row in rows(here.url).items()}
    assert [fetch(image) for image in list_images(there.url)] == list(found.values())
    record = read_run(there)
    plan = recorded_plan(record)
    assert verify(there, plan, recorded_stages(record), recorded_sizes(record), deep=True).whole


def test_of_two_attempts_the_first_commit_counts_and_the_other_is_gone(server):
    store = Store(f"{server.bucket}/race")
    first, second = Attempt(store, "boost", 0), Attempt(store, "boost", 0)
    assert first.commit([], 1, None) is True
    assert second.commit([], 1, None) is False
    assert read_commit(store, "boost", 0).attempt == first.id
    assert store.exists(first.manifest) and not store.exists(second.manifest)


def test_leases_and_versions_of_a_job_are_kept_on_any_store(server):
    store = Store(f"{server.bucket}/job")
    first = begin(store, "tick-1", wait=False)
    with Heartbeat(store, first, lambda: None) as heartbeat:
        heartbeat.end(True, "succeeded", {})
    second = begin(store, "tick-2", wait=False)
    assert (second.number, second.tick) == (2, "tick-2")
    skip(store, "tick-3", "another is at work")
    assert [lease.outcome for lease in read_leases(store)] == [None, "succeeded"]
    assert [skipped.tick for skipped in read_skipped(store)] == ["tick-3"]
    base, made = None, []
    for number, keys in enumerate((["a", "b"], ["c"]), 1):
        values = {"shard": 0, "row": 0, "stage": "boost", "status": "ok", "run": "r", "recipe": ""}
        rows = [{"key": key, **values} for key in keys]
        index = write_index(store, base, lambda key: key != "a", rows)
        base = publish(
            store,
            Version(
                number=number,
                tick=f"tick-{number}",
                run="r",
                spec_digest="",
                created_at="",
                index=index.path,
                images=index.images,
                rows={},
                parts={},
                changes={},
            ),
        )
        made.append([row["key"] for row in read_rows(store, base)])
    assert made == [["a", "b"], ["b", "c"]] and latest(store) == base
    late = publish(store, replace(base, tick="late", index=write_index(store, None, bool, []).path))
    assert late == base and len(list(store.names("versions/index"))) == 2


def test_whether_a_store_honours_conditional_create_is_found_by_trying(server):
    store = Store(f"{server.bucket}/probed")
    assert store.refuses_second_create() is server.honours_conditions
    assert store.entries("") == []


def test_a_bucket_that_is_not_there_is_one_sentence(server):
    with pytest.raises(UserError, match=r"cannot write to \w+://nowhere/out: "):
        Store(f"{server.protocol}://nowhere/out").refuses_second_create()


def test_an_object_that_vanished_since_it_was_planned_costs_its_row_alone(server):
    fs = fsspec.filesystem(server.protocol)
    for path in FACES[:3]:
        fs.pipe_file(f"bucket/few/{path.name}", path.read_bytes())
    planned = list(list_images(f"{server.bucket}/few"))
    fs.rm_file(f"bucket/few/{FACES[1].name}")
    assert fetch(planned[0]) == FACES[0].read_bytes()
    with pytest.raises(FileNotFoundError):
        fetch(planned[1])


def test_a_report_is_made_from_the_store_and_kept_there(bucket, cli):
    store = stand_in_run(f"{bucket}/faces", f"{bucket}/reported")
    code, out, err = cli("report", store.url, "--format", "both", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 2 * len(FACES)
    assert {name.rpartition(".")[2] for name in store.names("report")} == {"html", "md", "png"}
    assert b"data:" in store.read("report/report.html") and b'"after": {"0": "' in store.read("report/report.html")
