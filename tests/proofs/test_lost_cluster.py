"""Ray's own processes die, or an actor is stopped while it starts: the command ends with a sentence, or goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.run.commit import committed
from pipeline.storage.store import Store
from tests.support.runs import ROOT, asyrp, make_faces, wait_for_commits

pytestmark = pytest.mark.slow
FLAGS = ("-e", "glasses=1", "--n-inv", "4", "--n-gen", "4", "--preview", "0", "--shard-size", "4", "--no-check")


def start_run(source: Path, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs", "run", "-s", str(source), "-o", str(root), *FLAGS]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def descendant(pid: int, name: str) -> int | None:
    """A process whose title begins with `name`, among those that a process has started."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    parents = {int(line.split()[0]): (int(line.split()[1]), line.split(None, 2)[2]) for line in listed.splitlines()}
    for found, (parent, title) in parents.items():
        while parent in parents and parent != pid:
            parent = parents[parent][0]
        if parent == pid and title.startswith(name):
            return found
    return None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_run_that_loses_ray_ends_with_a_sentence_and_goes_on_by_the_same_command(tmp_path, process, number):
    source = make_faces(tmp_path / "faces", 400)
    driver = start_run(source, tmp_path / "out")
    store = wait_for_commits(tmp_path / "out", 2)
    found = descendant(driver.pid, process)
    assert found is not None
    os.kill(found, number)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 5 and "Traceback" not in err and out == ""
    assert err.splitlines()[-1].startswith("error: the ") and "the same command goes on from there" in err
    assert 2 <= len(committed(store, "boost")) < 100
    assert asyrp("run", "-s", source, "-o", tmp_path / "out", *FLAGS).returncode == 0
    assert len(committed(store, "boost")) == 100


def test_an_actor_that_is_stopped_while_it_starts_is_replaced(tmp_path):
    driver = start_run(make_faces(tmp_path / "faces", 8), tmp_path / "out")
    deadline = time.monotonic() + 120
    while (actor := descendant(driver.pid, "ray::EditActor")) is None:
        assert time.monotonic() < deadline and driver.poll() is None
    os.kill(actor, signal.SIGSTOP)
    _, err = driver.communicate(timeout=280)
    assert driver.returncode == 0 and "lost an actor" in err
    assert committed(Store(str(tmp_path / "out")), "boost") == {0, 1}
