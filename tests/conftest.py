"""Shared by the tests: small images, fast runs, and one Ray cluster where a test needs one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asyrp import registry
from jobs.spec import JobSpec
from pipeline.commit import committed, committed_rows
from pipeline.manifest import Row
from pipeline.storage import Store

SAMPLES = registry.BUNDLED / "avatars" / "samples"
FEW_STEPS: dict[str, Any] = {"n_inv": 3, "n_gen": 4, "preview": 0}


def make_faces(folder: Path, count: int) -> Path:
    """A folder of `count` small faces, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = sorted(SAMPLES.glob("*.png"))
    for index in range(count):
        face = np.asarray(Image.open(samples[index % len(samples)])).copy()
        face[0, 0] = (index % 256, index // 256, 0)
        Image.fromarray(face).save(folder / f"{index:04d}.png", compress_level=1)
    return folder


@pytest.fixture
def faces(tmp_path: Path) -> Callable[[int], Path]:
    return lambda count: make_faces(tmp_path / "faces", count)


def spec(source: Path | str, output: Path | str, **changes: Any) -> JobSpec:
    """A spec for a fast run: few steps, one edit, no self-check of the model."""
    engine = {"check": False, **changes.pop("engine", {})}
    values = {"source": str(source), "output": str(output), "edits": ["glasses=1"], **FEW_STEPS, **changes}
    values["engine"] = engine
    return JobSpec.model_validate(values)


def rows(root: Path | str, stage: str = "boost") -> dict[tuple[str, str | None, float | None], Row]:
    """All committed manifest rows of a stage by (key, edit, strength), each exactly once."""
    store = Store(str(root))
    found: dict[tuple[str, str | None, float | None], Row] = {}
    for row in committed_rows(store, stage, sorted(committed(store, stage))):
        name = (row["key"], row["edit"], row["strength"])
        assert name not in found, f"{name} is committed twice"
        found[name] = row
    return found


def digests(root: Path | str) -> dict[tuple[str, str | None, float | None], str]:
    """SHA-256 of every edited image, as the manifest says."""
    return {name: row["output_sha256"] for name, row in rows(root).items()}


def pixels(root: Path | str, row: Row) -> np.ndarray:
    return np.asarray(Image.open(Path(root) / row["output_uri"])).astype(int)


def asyrp(*arguments: str | Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-c", "from jobs.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of two CPUs in this process."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
