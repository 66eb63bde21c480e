"""`asyrp evaluate`: metrics of a run after the fact."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.results.evaluate import prepare
from jobs.results.report import ReportReader
from jobs.results.tables import origins
from jobs.runs.growth import retry, spec_of
from jobs.runs.resolve import resolve
from jobs.spec.inspection import InspectionSpec
from jobs.spec.run import EngineSpec
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.results.rows import OWN
from pipeline.run.commit import committed
from pipeline.stages.evaluation import evaluation_functions, read_evaluations
from pipeline.storage.store import Store
from pipeline.upkeep.garbage import find_garbage
from tests.support.runs import asyrp, digests, make_faces, rows, run_here, spec, stand_in_run, stand_in_stages

NAMES = ["s_dir", "edit_clip", "clip_margin"]
STEPS = {"n_inv": 10, "n_gen": 10}  # so many that an edit is more than the rounding of pixels


def evaluate_here(root: Path | str, **asked: Any) -> str:
    """Evaluate a run with one worker in this process; the name of the stage."""
    work = prepare(str(root), InspectionSpec.model_validate({"metrics": NAMES, **asked}), EngineSpec())
    functions = evaluation_functions(work.settings)
    with Worker(str(root), "here", functions, work.image_format, WorkerOptions(4, 2, 2)) as worker:
        for shard in sorted(set(work.shards) - committed(Store(str(root)), work.stage.name)):
            worker.run(work.stage, shard)
    return work.stage.name


def evaluated(root: Path | str, **asked: Any) -> Mapping[Any, Any]:
    """The rows of an evaluation by (key, edit, strength)."""
    return rows(root, evaluate_here(root, **asked))


@pytest.fixture
def source(tmp_path):
    return make_faces(tmp_path / "faces", 7)


@pytest.mark.parametrize("sink", ["files", "webdataset", "parquet"])
def test_finished_images_have_the_metrics_that_they_had_when_they_were_made(source, tmp_path, sink):
    inspection, edits = {"metrics": NAMES}, ["glasses=1", "smile=1"]
    asked = spec(source, tmp_path / "run", edits=edits, shard_size=4, sink=sink, inspection=inspection, **STEPS)
    run_here(resolve(asked))
    made, found = rows(tmp_path / "run"), evaluated(tmp_path / "run")
    assert found.keys() == made.keys() and len(found) == 14
    for name, row in found.items():
        assert [row[metric] for metric in NAMES] == pytest.approx([made[name][metric] for metric in NAMES], abs=0.02)
        assert row["output_uri"] is None


def test_rows_without_an_image_or_whose_source_has_changed_are_told_and_not_measured(source, tmp_path):
    (source / "0001.png").write_bytes(b"never an image")
    stand_in_run(source, tmp_path / "run", model="avatars")
    before = (source / "0002.png").read_bytes()
    (source / "0002.png").write_bytes(before[:-20] + bytes(20))  # as long as it was
    (source / "0004.png").unlink()
    found = evaluated(tmp_path / "run")
    told = {key: (row["status"], row["error_type"]) for (key, _, _), row in found.items()}
    assert told["0001.png"] == ("decode_error", "UnidentifiedImageError")
    assert told["0002.png"] == ("fetch_error", "Changed")
    assert told["0004.png"] == ("fetch_error", "FileNotFoundError")
    for (key, _, _), row in found.items():
        assert (row["s_dir"] is None) == (key in ("0001.png", "0002.png", "0004.png"))


def test_a_damaged_output_is_told_and_costs_no_other_image(source, tmp_path):
    store = stand_in_run(source, tmp_path / "run", model="avatars")
    store.write(rows(store.url)["0003.png", "glasses", 1.0]["output_uri"], b"something else")
    found = evaluated(store.url)
    assert found["0003.png", "glasses", 1.0]["error_type"] == "DamagedOutput"
    assert sum(row["s_dir"] is not None for row in found.values()) == 12


def test_images_at_strengths_of_their_own_are_measured_at_those(source, tmp_path):
    inspection = {"search": [0.5, 1.0], "gates": ["edit_clip > 0.2"]}
    run_here(resolve(spec(source, tmp_path / "run", edits=["glasses=1"], shard_size=4, inspection=inspection)))
    made, found = rows(tmp_path / "run"), evaluated(tmp_path / "run")
    assert found.keys() == made.keys()
    report = ReportReader(Store(str(tmp_path / "run"))).read()
    assert report.results.edits.names == ["glasses auto"] and report.results.origins["s_dir"]


def test_the_report_shows_what_was_evaluated_last_and_says_so(source, tmp_path):
    inspection = {"metrics": ["edit_clip"]}
    run_here(resolve(spec(source, tmp_path / "run", shard_size=4, inspection=inspection)))
    before = digests(tmp_path / "run")
    evaluated(tmp_path / "run", metrics=["s_dir"])
    evaluated(tmp_path / "run", metrics=["s_dir", "edit_clip"], texts={"glasses": ["a face", "a hat"]})
    store = Store(str(tmp_path / "run"))
    results = ReportReader(store).read().results
    first, second = read_evaluations(store)
    assert results.origins == {"edit_clip": {second.title: 7}, "s_dir": {second.title: 7}}
    latest = {key: row["s_dir"] for (key, _, _), row in rows(store.url, second.stage).items()}
    shown = dict(zip([results.keys.names[code] for code in results.keys.codes], results.metrics["s_dir"], strict=True))
    assert shown == pytest.approx(latest)
    evaluated(tmp_path / "run", metrics=["s_dir"])  # nothing to do, but it counts from now on
    _, last = read_evaluations(store)
    assert last.stage == first.stage
    assert ReportReader(store).read().results.origins["s_dir"] == {last.title: 7}
    assert digests(tmp_path / "run") == before


def test_what_a_killed_evaluation_left_is_garbage_and_nothing_else_of_it(source, tmp_path):
    store = stand_in_run(source, tmp_path / "run", model="avatars")
    stage = evaluate_here(store.url)
    assert not find_garbage(store, ["boost"])
    left = f"manifest/{stage}/000000.dead.parquet"
    store.write(left, b"half a manifest")
    assert [garbage.names for garbage in find_garbage(store, ["boost"])] == [(left,)]


def test_the_report_says_which_numbers_are_the_runs_own(source, tmp_path):
    run_here(resolve(spec(source, tmp_path / "run", shard_size=4, inspection={"metrics": ["edit_clip"]})))
    store = Store(str(tmp_path / "run"))
    reader = ReportReader(store)
    assert not origins(reader.read().results).rows
    evaluated(tmp_path / "run", metrics=["s_dir"])
    results = reader.read().results
    assert results.origins["edit_clip"] == {OWN: 7} and len(origins(results).rows) == 2


def test_an_image_that_was_tried_again_is_measured_as_it_stands(source, tmp_path):
    broken = (source / "0001.png").read_bytes()
    (source / "0001.png").write_bytes(b"never an image")
    store = stand_in_run(source, tmp_path / "run", model="avatars")
    evaluate_here(store.url)
    (source / "0001.png").write_bytes(broken)
    again = retry(store.url, frozenset({"decode_error"}))
    assert again
    run_here(resolve(spec_of(store.url, EngineSpec())), make=stand_in_stages, shards=again.shard_ids)
    evaluate_here(store.url)
    results = ReportReader(store).read().results
    assert len(results) == 14 and np.isfinite(results.metrics["s_dir"]).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return stand_in_run(make_faces(folder / "faces", 2), folder / "run", model="avatars").url


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--metric", "recon_psnr"], "recon_psnr cannot be measured of finished images"),
        ([], "nothing to measure"),
        (["--metric", "beauty"], "there is no metric 'beauty'"),
        (["--metric", "s_dir", "--set", "gates=[s_dir > 0]"], "an evaluation measures and changes nothing"),
        (["--metric", "s_dir", "--set", "clipp=avatars"], "did you mean 'clip'?"),
        (["--metric", "identity"], "needs a face model"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(run, asked, said):
    found = asyrp("evaluate", run, *asked)
    assert found.returncode == 2 and said in found.stderr.replace("\n", " ") and "Traceback" not in found.stderr
    assert not read_evaluations(Store(run))


@pytest.mark.usefixtures("ray_cluster")
def test_a_finished_run_is_evaluated_over_the_cluster_and_again_where_a_source_was_away(source, tmp_path):
    store = stand_in_run(source, tmp_path / "run", model="avatars")
    away = (source / "0003.png").read_bytes()
    (source / "0003.png").unlink()
    command = ("evaluate", store.url, "--metric", "s_dir", "--json")
    found = json.loads(asyrp(*command).stdout)
    assert found["complete"] and found["rows"] == {"ok": 12, "fetch_error": 2}
    assert found["metrics"]["glasses 1"]["s_dir"]["count"] == 6 and sum(found["unread"].values()) == 2
    (source / "0003.png").write_bytes(away)
    assert json.loads(asyrp(*command).stdout)["session"] is None
    again = json.loads(asyrp(*command, "--again").stdout)
    assert again["rows"] == {"ok": 14} and again["session"]["images"] == 5
    assert np.isfinite(ReportReader(store).read().results.metrics["s_dir"]).sum() == 14
