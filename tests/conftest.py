"""Fixtures that tests of any room take."""

import os
from collections.abc import Callable
from pathlib import Path

# Before torch is loaded: the two processes of the suite would starve each other with two threads each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers are nicer than others by default, so a test that waits for one would wait for the other process too.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest
from tenacity import wait_none

from tests.support.runs import asyrp, compute_here, make_faces


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Most tests wait more than they compute: the suite runs in two processes, and files that are named in this one."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.fixture
def faces(tmp_path: Path) -> Callable[[int], Path]:
    return lambda count: make_faces(tmp_path / "faces", count)


@pytest.fixture
def cli() -> Callable[..., tuple[int, str, str]]:
    """Call the command line; its exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        done = asyrp(*arguments)
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache of models and what was learned of them."""
    monkeypatch.setenv("ASYRP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that fails is tried again at once."""
    monkeypatch.setattr("pipeline.images.fetch.wait_random_exponential", lambda *_: wait_none())


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of two CPUs in this process."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are computed by a worker in this process, for tests of what commands do before and after."""
    for module in ("jobs.runs.run", "jobs.results.evaluate", "jobs.learn.collect"):
        monkeypatch.setattr(f"{module}.compute", compute_here)
