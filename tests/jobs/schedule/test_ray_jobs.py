"""Ticks as jobs of a Ray cluster that runs: a real one, with its dashboard."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from werkzeug import Request, Response

from pipeline.datasets.leases import last_lease
from pipeline.datasets.versions import latest
from pipeline.storage.store import Store
from tests.support.runs import ASYRP, FEW_STEPS, ROOT, make_faces
from tests.support.servers import ray_head

DEADLINE_SECONDS = 120
IMAGES = 40
COMMITS = "runs/*/commit/boost/*.json"
ID = "nightly-20260105T023000Z"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a Ray cluster that wants a token, with its address in RAY_API_SERVER_ADDRESS."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    with ray_head(tmp_path / "log", environment) as address:
        yield {**os.environ, **environment, "RAY_API_SERVER_ADDRESS": address}


def call(environment: dict[str, str], *arguments: str | Path) -> tuple[int, str, str]:
    """The command line in a process of its own: exit code, stdout, stderr."""
    command = [*ASYRP, "jobs", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    return done.returncode, done.stdout, done.stderr


def whole_log(environment: dict[str, str], submission_id: str) -> str:
    """What a Ray job wrote, when it has ended."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "logs", "--follow", submission_id]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def is_at_work(root: Path) -> bool:
    lease = last_lease(Store(str(root)))
    return lease is not None and lease.ended_at is None and any(root.glob(COMMITS))


class SlowImages:
    """A handler of a server that has one image in half a second, until it is told to hurry."""

    def __init__(self, folder: Path) -> None:
        self.images = [path.read_bytes() for path in sorted(folder.iterdir())]
        self.hurries = False

    def __call__(self, request: Request) -> Response:
        if not self.hurries:
            time.sleep(0.5)
        return Response(self.images[int(request.path.removeprefix("/"))])


@pytest.mark.slow
def test_a_tick_is_submitted_cancelled_followed_and_done_once_on_a_cluster(cluster, tmp_path, httpserver):
    images = SlowImages(make_faces(tmp_path / "faces", IMAGES))
    httpserver.expect_request(re.compile(r"/\d+")).respond_with_handler(images)
    (tmp_path / "list.txt").write_text("\n".join(httpserver.url_for(f"/{number}") for number in range(IMAGES)))
    root, spec = tmp_path / "root", tmp_path / "nightly.yaml"
    run = {"source": str(tmp_path / "list.txt"), "edits": ["glasses=1"], "shard_size": 2, **FEW_STEPS}
    spec.write_text(yaml.safe_dump({"name": "nightly", "root": str(root), "run": {**run, "engine": {"check": False}}}))
    submit = ("submit", spec, "--tick", "2026-01-05T02:30:00Z")

    code, out, err = call({**cluster, "RAY_AUTH_MODE": "disabled"}, *submit)
    assert code == 2 and "wants its token: set RAY_AUTH_MODE=token" in err
    while (done := call(cluster, *submit, "--json"))[0]:
        assert "No available agent" in done[2]
    assert json.loads(done[1]) == {"id": ID, "status": "PENDING", "is_new": True}
    until(lambda: is_at_work(root))
    assert call(cluster, *submit)[:2] == (0, f"{ID}: is there already, RUNNING\n")

    code, out, err = call(cluster, "cancel", spec)
    assert code == 0 and "at work on tick 20260105T023000Z" in " ".join(out.split()), err
    assert "tick 20260105T023000Z drained" in whole_log(cluster, ID)
    images.hurries = True
    commits = set(root.glob(COMMITS))
    assert 0 < len(commits) < IMAGES / 2, "it was drained before it was through"

    with ThreadPoolExecutor() as threads:
        calls = [threads.submit(call, cluster, *submit, "--json") for _ in range(2)]
    submissions = [json.loads(done.result()[1]) for done in calls]
    assert {submission["id"] for submission in submissions} == {f"{ID}-2"}
    assert sum(submission["is_new"] for submission in submissions) == 1
    code, out, err = call(cluster, *submit, "--follow")
    assert code == 0 and out.startswith(f"{ID}-2: is there already"), err
    assert f"{IMAGES} new" in err, "the log was followed"
    assert commits < set(root.glob(COMMITS))
    version = latest(Store(str(root)))
    assert version is not None and (version.images, version.rows) == (IMAGES, {"ok": IMAGES})
    assert call(cluster, *submit, "--follow")[:2] == (0, f"{ID}-2: is there already, SUCCEEDED\n")


def test_without_a_cluster_submitting_is_one_sentence(cli, tmp_path):
    (tmp_path / "job.yaml").write_text("name: smiles\nroot: root\nrun: {source: faces, edits: [smile=1]}\n")
    code, _, err = cli("jobs", "submit", tmp_path / "job.yaml", "--address", "http://127.0.0.1:1")
    assert code == 2 and "there is no Ray cluster that takes jobs at http://127.0.0.1:1" in " ".join(err.split())
