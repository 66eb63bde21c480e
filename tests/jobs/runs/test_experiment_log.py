"""Experiment loggers, for real: MLflow's file store, W&B offline."""

import json
from pathlib import Path

import pytest

from tests.support.runs import asyrp, make_faces

pytestmark = pytest.mark.usefixtures("without_ray")

FAST = ("--n-inv", "4", "--n-gen", "4", "--preview", "0", "--no-check", "--json")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("logged") / "faces", 4)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a log had to say of itself."""
    return [record.message for record in caplog.records if record.name == "jobs.runs.experiment_log"]


def run(source: Path, root: Path, log: str):
    return asyrp("run", "-s", source, "-o", root, "-e", "glasses=1", "--metric", "s_dir", "--log", log, *FAST)


def test_mlflow_has_the_settings_the_counts_the_means_and_the_sheet(source, tmp_path, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    done = run(source, tmp_path / "run", f"mlflow:{uri}")
    assert done.returncode == 0 and not said(caplog)
    client = mlflow.MlflowClient(tracking_uri=uri)
    [logged] = client.search_runs([client.get_experiment_by_name("asyrp").experiment_id])
    assert logged.info.status == "FINISHED" and logged.info.run_name == "run"
    assert logged.data.params["seed"] == "0" and logged.data.params["inspection.metrics"] == "['s_dir']"
    assert logged.data.metrics["rows/ok"] == 4 and logged.data.metrics["images/boost"] == 4
    assert -1 <= logged.data.metrics["mean/glasses 1/s_dir"] <= 1
    assert [file.path for file in client.list_artifacts(logged.info.run_id)] == ["contact_sheet.png"]
    again = run(source, tmp_path / "run", f"mlflow:{uri}")  # nothing to do, nothing to tell
    assert again.returncode == 0 and len(client.search_runs([logged.info.experiment_id])) == 1


def test_wandb_keeps_a_run_offline(source, tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    done = run(source, tmp_path / "run", "wandb:faces")
    assert done.returncode == 0 and not said(caplog)
    [kept] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    data = kept.read_bytes()
    assert b"identity_hash" in data and b"mean/glasses 1/s_dir" in data
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/*.png"))


def test_a_logger_that_fails_says_so_once_and_the_run_is_done(source, tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "a-file").write_text("in the way")
    done = run(source, tmp_path / "run", f"mlflow:{(tmp_path / 'a-file').as_uri()}")
    assert done.returncode == 0 and json.loads(done.stdout)["complete"] and "Traceback" not in done.stderr
    [complaint] = said(caplog)
    assert complaint.startswith("the run is not logged any more: NotADirectoryError")


@pytest.mark.parametrize("log", ["tensorboard:here", "wandb", "mlflow:https://user:secret@host/"])
def test_what_is_no_logger_is_one_sentence(source, tmp_path, log):
    done = run(source, tmp_path / "run", log)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "run").exists()
    assert "secret" not in done.stderr
