"""The precision of a run: what its spec says, else what it began with, else what suits the device."""

import logging

import pytest

from asyrp.errors import UserError
from asyrp.models.precision import Choice
from jobs.runs import precision
from jobs.runs.estimate import estimate
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from pipeline.storage.store import Store
from tests.support.runs import make_faces, run_here, spec, stand_in_stages


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The machine has a GPU, as far as the choice of a precision goes."""
    monkeypatch.setattr(precision, "device_of", lambda _: "cuda")


@pytest.fixture
def source(tmp_path):
    return make_faces(tmp_path / "faces", 2)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_new_run_takes_what_suits_its_device_and_says_why(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    resolved = resolve(spec(source, tmp_path / "out", dtype="auto"))
    assert resolved.settings.dtype == resolved.identity["dtype"] == resolved.spec.dtype == "bfloat16"
    assert "dtype is bfloat16: the net runs on a GPU" in caplog.messages


@pytest.mark.usefixtures("on_a_gpu")
def test_what_the_spec_says_counts(source, tmp_path):
    assert resolve(spec(source, tmp_path / "out", dtype="tf32")).identity["dtype"] == "tf32"


@pytest.mark.usefixtures("on_a_gpu")
def test_a_run_keeps_the_precision_that_it_began_with(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_here(resolve(spec(source, tmp_path / "out", dtype="float32")), make=stand_in_stages)
    again = resolve(spec(source, tmp_path / "out", dtype="auto"))
    assert again.settings.dtype == "float32" and not caplog.messages
    assert open_run(Store(again.spec.output), again).images == 2
    with pytest.raises(UserError, match="dtype: float32 there, bfloat16 here"):
        open_run(Store(again.spec.output), resolve(spec(source, tmp_path / "out", dtype="bfloat16")))


@pytest.mark.usefixtures("on_a_gpu")
def test_edits_of_kept_inversions_have_the_precision_of_these(source, tmp_path):
    staged = resolve(spec(source, tmp_path / "staged", dtype="float32", stages="staged"))
    run_here(staged, make=stand_in_stages)
    again = resolve(spec(source, tmp_path / "again", dtype="auto", inversions=str(tmp_path / "staged")))
    assert again.settings.dtype == "float32"


def test_a_plan_says_the_precision(source, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "best_precision", lambda _: Choice("float32", "it is a test"))
    planned = estimate(resolve(spec(source, tmp_path / "out", dtype="auto")))
    assert (planned.dtype, planned.device) == ("float32", "cpu")


def test_a_device_that_is_named_is_taken_and_no_cluster_asked(source, tmp_path):
    for device in ("cpu", "cuda"):
        engine = {"device": device, "address": "10.255.255.1:6379"}
        assert precision.device_of(spec(source, tmp_path, engine=engine).engine) == device
