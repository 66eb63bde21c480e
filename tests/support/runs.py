"""Gives what tests of runs share: small images, fast specs, stand-ins for the net, the command line."""

import hashlib
import io
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from asyrp.models.folder import BUNDLED
from jobs.cli.app import main
from jobs.runs.record import open_run
from jobs.runs.resolve import ResolvedRun, resolve
from jobs.spec.run import RunSpec
from pipeline.engine.driver import Outcome, pending_units
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.run import manifest
from pipeline.run.commit import FileEntry, commit_name, committed, committed_rows, read_commit
from pipeline.run.manifest import Row
from pipeline.run.plan import RUN, PlanSummary
from pipeline.run.sinks import read_output
from pipeline.run.stage import BatchFunction, ImageFormat, MakeFunctions, Stage
from pipeline.stages.loading import load_functions
from pipeline.storage.store import Store
from tests.support.models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout."""

DATA = ROOT / "tests" / "data"
SAMPLES = BUNDLED / "avatars" / "samples"
FEW_STEPS: dict[str, Any] = {"n_inv": 4, "n_gen": 4, "preview": 0}


def make_faces(folder: Path, count: int) -> Path:
    """A folder of `count` small faces, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = sorted(SAMPLES.glob("*.png"))
    for index in range(count):
        face = np.asarray(Image.open(samples[index % len(samples)])).copy()
        face[0, 0] = (index % 256, index // 256, 0)
        Image.fromarray(face).save(folder / f"{index:04d}.png", compress_level=1)
    return folder


def spec(source: Path | str, output: Path | str, **changes: Any) -> RunSpec:
    """A spec for a fast run: few steps of a tiny net, one edit, no self-check of the model. What is to be measured is
    edited by the bundled model, which has nets that measure."""
    engine = {"check": False, **changes.pop("engine", {})}
    model = "avatars" if changes.get("inspection") else str(tiny_model())
    usual = {"model": model, "edits": ["glasses=1"], "dtype": "float32", **FEW_STEPS}
    values = {"source": str(source), "output": str(output), **usual, **changes}
    values["engine"] = engine
    return RunSpec.model_validate(values)


def record_plan(store: Store, plan: PlanSummary) -> None:
    """As much of run.json as makes a plan count."""
    store.write(RUN, json.dumps({"plan": asdict(plan)}).encode())


def rows(root: Path | str, stage: str = "boost") -> dict[tuple[str, str | None, float | None], Row]:
    """All committed manifest rows of a stage by (key, edit, strength), each exactly once."""
    store = Store(str(root))
    found: dict[tuple[str, str | None, float | None], Row] = {}
    for row in committed_rows(store, stage, sorted(committed(store, stage))):
        name = (row["key"], row["edit"], row["strength"])
        assert name not in found, f"{name} is committed twice"
        found[name] = row
    return found


def rewrite_manifest(store: Store, stage: str, shard: int, change: Callable[[Row], Row]) -> None:
    """Change the rows of a committed manifest, and the commit that says how long it is and what its SHA-256 is."""

    def changed(data: bytes) -> bytes:
        return manifest.to_bytes([change(row) for row in manifest.from_bytes(data)])

    rewrite_file(store, stage, shard, read_commit(store, stage, shard).manifest, changed)


def rewrite_file(store: Store, stage: str, shard: int, ending: str, change: Callable[[bytes], bytes]) -> None:
    """Change a committed file by the ending of its name, and the commit that says what its SHA-256 is."""
    commit = read_commit(store, stage, shard)
    [path] = [file.path for file in commit.files if file.path.endswith(ending)]
    data = change(store.read(path))
    store.write(path, data)
    entry = FileEntry(path, len(data), hashlib.sha256(data).hexdigest())
    files = [entry if file.path == entry.path else file for file in commit.files]
    store.write(commit_name(stage, shard), json.dumps(asdict(replace(commit, files=files))).encode())


def digests(root: Path | str) -> dict[tuple[str, str | None, float | None], str]:
    """SHA-256 of every edited image, as the manifest says."""
    return {name: row["output_sha256"] for name, row in rows(root).items()}


def pixels(root: Path | str, row: Row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(read_output(Store(str(root)), row)))).astype(int)


def run_here(
    resolved: ResolvedRun,
    batch_size: int = 4,
    make: MakeFunctions | None = None,
    stages: list[Stage] | None = None,
    shards: Sequence[int] | None = None,
) -> None:
    """Do a whole run, or some shards of it, with one worker in this process."""
    store = Store(resolved.spec.output)
    plan = open_run(store, resolved)
    functions = make() if make else load_functions(resolved.settings)
    with Worker(store.url, "here", functions, resolved.image_format, WorkerOptions(batch_size, 2, 2)) as worker:
        for stage in stages or resolved.stages:
            for shard in stage.shards(range(plan.shards) if shards is None else shards):
                worker.run(stage, shard)


def compute_here(
    store: Store,
    stages: Sequence[Stage],
    *,
    load: Callable[[Any], Any],
    settings: Any,
    image_format: ImageFormat,
    shards: Sequence[int],
    display: AbstractContextManager[None],
    **_: Any,
) -> Outcome:
    """Stands in for `jobs.runs.run.compute`: works through what is left with one worker in this process."""
    units = pending_units(store, stages, shards)
    by_name = {stage.name: stage for stage in stages}
    name = uuid.uuid4().hex[:8]
    with display, Worker(store.url, name, load(settings), image_format, WorkerOptions(4, 2, 2)) as worker:
        images = sum(worker.run(by_name[unit.stage], unit.shard).images for unit in units)
    return Outcome(finished=True, images=images, seconds=worker.meter.seconds)


def stand_in_stages() -> dict[str, BatchFunction]:
    """Stands in for the net in every stage: a picture, or a latent, a little darker for each edit."""

    def edit(batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
        return torch.cat([batch, batch - 0.2], 1)

    def same(batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
        return batch

    return {
        "fused": edit,
        "edit": edit,
        "invert": same,
        "boost": same,
        "reconstruct": same,
        "reconstruct_latents": same,
    }


def stand_in_run(source: Path | str, output: Path | str, **changes: Any) -> Store:
    """A whole run of two edits in this process, with a stand-in for the net; its store."""
    changes = {"edits": ["glasses=1", "smile=-0.5"], "shard_size": 5, **changes}
    resolved = resolve(spec(source, output, **changes))
    run_here(resolved, make=stand_in_stages)
    return Store(resolved.spec.output)


ASYRP = [sys.executable, "-c", "from jobs.cli.app import main; main()"]
"""The command line in a process of its own, for what is killed or must not know this one's Ray cluster."""


def asyrp(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Call the command line in this process: a process of its own would load torch again."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["asyrp", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    code = ended.value.code or 0
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def wait_for_commits(root: Path, count: int, stage: str = "boost") -> Store:
    """Wait until a run has committed `count` shards of a stage, and is at work on more."""
    store, deadline = Store(str(root)), time.monotonic() + 120
    while len(committed(store, stage)) < count or not list(store.names("progress")):
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.02)
    return store


EXAMPLES = sorted(Path(str(resources.files("jobs") / "examples")).glob("*.yaml"))
