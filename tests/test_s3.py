"""A whole run on a real S3 server on loopback: plan, kill, resume, and what the store may be asked."""

import os
import signal
import subprocess
import sys
import time

import fsspec
import pytest
from conftest import SAMPLES, asyrp, rows, stand_in_run
from moto.server import ThreadedMotoServer

from jobs.record import read_run, recorded_stages
from pipeline.commit import Attempt, committed, read_commit
from pipeline.fetch import fetch
from pipeline.plan import PlanSummary
from pipeline.sinks import read_output
from pipeline.sources import list_images
from pipeline.storage import Store
from pipeline.verify import verify

FACES = sorted(SAMPLES.glob("*.png"))[:24]
FLAGS = ("-e", "glasses=1", "--n-inv", "3", "--n-gen", "4", "--preview", "0", "--shard-size", "2", "--no-check")


@pytest.fixture(scope="module")
def bucket():
    """The URL of a bucket with 24 faces below faces/, for this process and those that it starts."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fs = fsspec.filesystem("s3")
        fs.mkdir("bucket")
        for path in FACES:
            fs.pipe_file(f"bucket/faces/{path.name}", path.read_bytes())
        yield "s3://bucket"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_a_killed_run_on_s3_goes_on_and_commits_every_image_once(bucket):
    command = ["run", "-s", f"{bucket}/faces", "-o", f"{bucket}/out", *FLAGS]
    driver = subprocess.Popen(
        [sys.executable, "-c", "from jobs.cli import main; main()", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store, deadline = Store(f"{bucket}/out"), time.monotonic() + 150
    while not committed(store, "boost"):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    again = asyrp(*command)
    assert again.returncode == 0, again.stderr
    found = rows(f"{bucket}/out")
    assert {key for key, _, _ in found} == {path.name for path in FACES}
    for row in found.values():
        assert row["status"] == "ok" and row["source_etag"]
        assert len(store.read(row["output_uri"])) == row["output_bytes"]
    status = asyrp("status", f"{bucket}/out", "--json")
    assert '"complete": true' in status.stdout
    assert "not-a-secret" not in store.read("run.json").decode() + again.stderr + status.stdout


def test_the_same_key_is_listed_and_fetched_from_s3_as_from_a_folder(bucket):
    there, here = list(list_images(f"{bucket}/faces")), list(list_images(str(SAMPLES)))[: len(FACES)]
    assert [image.key for image in there] == [image.key for image in here]
    assert fetch(there[3]) == fetch(here[3])


@pytest.mark.parametrize("sink", ["webdataset", "parquet"])
def test_images_in_a_tar_or_table_on_s3_are_the_same_as_on_a_disk(bucket, tmp_path, sink):
    here = stand_in_run(SAMPLES, tmp_path / "out", limit=4, shard_size=3)
    there = stand_in_run(f"{bucket}/faces", f"{bucket}/{sink}", limit=4, shard_size=3, sink=sink)
    found = {name: read_output(there, row) for name, row in rows(there.url).items()}
    assert found == {name: read_output(here, row) for name, row in rows(here.url).items()}
    assert [fetch(image) for image in list_images(there.url)] == list(found.values())
    record = read_run(there)
    plan = PlanSummary(**record["plan"])
    assert verify(there, plan, recorded_stages(record), record["stages"], deep=True).whole


def test_of_two_attempts_on_s3_the_first_commit_counts_and_the_other_is_gone(bucket):
    store = Store(f"{bucket}/race")
    attempts = [Attempt(store, "boost", 0) for _ in range(2)]
    for attempt in attempts:
        attempt.write("x.png", attempt.id.encode())
    assert attempts[0].commit([], 1, None) is True
    assert attempts[1].commit([], 1, None) is False
    assert read_commit(store, "boost", 0).attempt == attempts[0].id
    assert store.exists(f"{attempts[0].folder}/x.png") and not store.exists(f"{attempts[1].folder}/x.png")


def test_an_object_that_vanished_since_it_was_planned_costs_its_row_alone(bucket):
    fs = fsspec.filesystem("s3")
    for path in FACES[:3]:
        fs.pipe_file(f"bucket/few/{path.name}", path.read_bytes())
    planned = list(list_images(f"{bucket}/few"))
    fs.rm(f"bucket/few/{FACES[1].name}")
    assert fetch(planned[0]) == FACES[0].read_bytes()
    with pytest.raises(FileNotFoundError):
        fetch(planned[1])
