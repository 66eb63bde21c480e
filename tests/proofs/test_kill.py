"""kill -9 in the middle of a run of 60 images, then the same command again."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from jobs.runs.run import exit_code, run
from pipeline.run.commit import committed
from pipeline.run.progress import read_heartbeats
from pipeline.storage.store import Store
from tests.support.models import tiny_model
from tests.support.runs import ASYRP, asyrp, digests, make_faces, spec, wait_for_commits

IMAGES, SHARD_SIZE = 60, 5
FLAGS = (
    "--model",
    str(tiny_model()),
    "-e",
    "glasses=1",
    "--n-inv",
    "4",
    "--n-gen",
    "4",
    "--preview",
    "0",
    "--shard-size",
    str(SHARD_SIZE),
    "--no-check",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_faces(tmp_path_factory.mktemp("kill") / "faces", IMAGES)


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory, ray_cluster):  # noqa: ARG001
    root = tmp_path_factory.mktemp("calm") / "out"
    assert exit_code(run(spec(source, root, shard_size=SHARD_SIZE)).outcome) == 0
    found = digests(root)
    assert len(found) == IMAGES
    return found


def kill_actor(root: Path) -> None:
    os.kill(read_heartbeats(wait_for_commits(root, 3))[0]["pid"], signal.SIGKILL)


def test_a_killed_actor_costs_no_image_and_changes_no_byte(source, undisturbed, tmp_path):
    killer = threading.Thread(target=kill_actor, args=(tmp_path / "out",))
    killer.start()
    result = run(spec(source, tmp_path / "out", shard_size=SHARD_SIZE))
    killer.join()
    assert exit_code(result.outcome) == 0
    assert len(read_heartbeats(Store(str(tmp_path / "out")))) == 2
    assert digests(tmp_path / "out") == undisturbed


def start_run(source: Path, root: Path) -> subprocess.Popen[str]:
    command = [*ASYRP, "run", "-s", source, "-o", root, *FLAGS]
    return subprocess.Popen([str(part) for part in command], text=True, stderr=subprocess.PIPE)


def test_a_killed_driver_costs_no_image_and_changes_no_byte(source, undisturbed, tmp_path):
    driver = start_run(source, tmp_path / "out")
    store = wait_for_commits(tmp_path / "out", 3)
    driver.kill()
    driver.wait()
    assert len(committed(store, "boost")) < IMAGES / SHARD_SIZE
    again = asyrp("run", "-s", source, "-o", tmp_path / "out", *FLAGS)
    assert again.returncode == 0, again.stderr
    assert digests(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_sigterm_drains_and_the_same_command_goes_on(source, undisturbed, tmp_path):
    driver = start_run(source, tmp_path / "out")
    store = wait_for_commits(tmp_path / "out", 3)
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "stopped on request" in errors
    assert 3 <= len(committed(store, "boost")) < IMAGES / SHARD_SIZE
    assert len(list((tmp_path / "out" / "data" / "boost").iterdir())) == len(committed(store, "boost"))
    again = asyrp("run", "-s", source, "-o", tmp_path / "out", *FLAGS)
    assert again.returncode == 0, again.stderr
    assert digests(tmp_path / "out") == undisturbed
