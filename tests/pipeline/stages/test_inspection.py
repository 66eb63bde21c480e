"""Runs that measure their edits, hold them against gates, and search strengths."""

import numpy as np
import pytest
from pydantic import ValidationError

from asyrp.errors import UserError
from jobs.runs.resolve import resolve
from jobs.runs.session import InversionLoss, inversion_loss
from jobs.spec.inspection import InspectionSpec
from pipeline.images.statuses import OK
from pipeline.storage.store import Store
from tests.support.runs import SAMPLES, asyrp, digests, make_faces, rows, run_here, spec

STEPS = {"model": "avatars", "n_inv": 8, "n_gen": 8, "refine": 1}
RUNGS = [0.5, 1.0, 1.5, 2.0]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("inspection") / "faces", 6)


def done(source, output, inspection=None, **changes):
    """Run it; its rows by key, all of one edit."""
    run_here(resolve(spec(source, output, inspection=inspection, **{**STEPS, "shard_size": 4, **changes})))
    return {key: row for (key, _, _), row in rows(output).items()}


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory):
    """The rows of a run that refuses nothing."""
    return done(source, tmp_path_factory.mktemp("plain"), {"metrics": ["recon_psnr", "edit_clip"]})


def test_what_is_asked_is_in_every_row_and_nothing_else(source, tmp_path):
    found = done(source, tmp_path, {"metrics": ["recon_psnr", "s_dir", "segmentation"]})
    assert len(found) == 6
    for row in found.values():
        assert row["recon_psnr"] > 5 and -1 <= row["s_dir"] <= 1 and 0 <= row["segmentation"] <= 1
        assert row["clip_score"] is None and row["scores"] is None and row["refine"] == 1


def test_measuring_does_not_change_a_byte(source, tmp_path):
    done(source, tmp_path / "plain")
    done(source, tmp_path / "measured", {"metrics": ["recon_psnr", "s_dir", "edit_clip"]})
    assert digests(tmp_path / "plain") == digests(tmp_path / "measured")


def test_a_staged_run_measures_the_same_of_its_edits(source, tmp_path):
    names = ["s_dir", "edit_clip", "segmentation"]
    fused = done(source, tmp_path / "fused", {"metrics": names})
    staged = done(source, tmp_path / "staged", {"metrics": names}, stages="staged")
    for key, row in fused.items():
        assert [staged[key][name] for name in names] == pytest.approx([row[name] for name in names], abs=1e-3)


def test_a_share_of_the_images_is_measured_where_a_sample_is_asked(source, tmp_path):
    found = done(source, tmp_path, {"metrics": ["recon_psnr", "s_dir"], "sample": 0.5})
    measured = {key for key, row in found.items() if row["s_dir"] is not None}
    assert 0 < len(measured) < len(found)
    assert measured == {key for key, row in found.items() if row["recon_psnr"] is not None}


def test_the_sample_without_an_edit_is_measured_in_every_run(source, tmp_path):
    for stages in ("fused", "staged"):
        done(source, tmp_path / stages, preview=3, stages=stages)
    psnr = {
        stages: [row["recon_psnr"] for row in rows(tmp_path / stages, "reconstruct").values()]
        for stages in ("fused", "staged")
    }
    assert len(psnr["fused"]) == 3 and min(psnr["fused"]) > 10
    assert psnr["fused"] == pytest.approx(psnr["staged"], abs=1e-3)
    lost = inversion_loss(Store(str(tmp_path / "fused")))
    assert lost == InversionLoss(3, np.median(psnr["fused"]), min(psnr["fused"]), "ddim")
    assert "--refine 2 keeps more" in lost.text
    assert "refine" not in InversionLoss(3, 40.0, 35.0).text
    assert "starts from all of the image" in InversionLoss(3, 20.0, 15.0, "dpmpp_2m").text


def test_an_edit_that_a_gate_refuses_has_its_numbers_and_no_image(source, tmp_path, plain):
    limit = np.median([row["recon_psnr"] for row in plain.values()])
    found = done(source, tmp_path, {"gates": [f"recon_psnr > {limit} and edit_clip < 10"]})
    refused = {key for key, row in found.items() if row["status"] == "rejected_quality"}
    assert refused == {key for key, row in plain.items() if row["recon_psnr"] <= limit} and len(refused) == 3
    for key, row in found.items():
        assert row["edit_clip"] == pytest.approx(plain[key]["edit_clip"], abs=1e-4)
        if key in refused:
            assert row["output_uri"] is None
            assert row["error"] == f"recon_psnr is {row['recon_psnr']:.4g}, and the gate is recon_psnr > {limit}"
        else:
            assert row["output_sha256"] == plain[key]["output_sha256"]
    assert asyrp("verify", tmp_path, "--deep").returncode == 0


def test_images_that_reconstruct_badly_are_inverted_again(source, tmp_path, plain):
    limit = sorted(row["recon_psnr"] for row in plain.values())[2]
    found = done(
        source, tmp_path / "retried", {"gates": [f"recon_psnr >= {limit}"], "retry": {"refine": 3, "n_inv": 12}}
    )
    better = done(source, tmp_path / "better", {"metrics": ["recon_psnr"]}, refine=3, n_inv=12)
    again = {key for key, row in found.items() if row["refine"] == 3}
    assert again == {key for key, row in plain.items() if row["recon_psnr"] < limit} and len(again) == 2
    for key, row in found.items():
        alike = better[key] if key in again else plain[key]
        assert row["n_inv"] == alike["n_inv"]
        assert row["recon_psnr"] == pytest.approx(alike["recon_psnr"], abs=1e-3)
        assert row["status"] != OK or row["output_sha256"] == alike["output_sha256"]


@pytest.fixture(scope="module")
def swept(source, tmp_path_factory):
    """The same images at every strength: (strength, key) to their row."""
    folder = tmp_path_factory.mktemp("swept")
    return {
        (strength, key): row
        for strength in RUNGS
        for key, row in done(
            source, folder / str(strength), {"metrics": ["edit_clip"]}, edits=[f"smile={strength}"], t_boost=300
        ).items()
    }


def test_each_image_gets_the_smallest_strength_that_passes_to_the_byte(source, tmp_path, swept):
    gate = np.median([row["edit_clip"] for (strength, _), row in swept.items() if strength == 1.5])
    inspection = {"gates": [f"edit_clip > {gate}"], "search": RUNGS}
    found = done(source, tmp_path, inspection, edits=["smile=1"], t_boost=300, preview=3)
    strengths = set()
    for key, row in found.items():
        passing = [strength for strength in RUNGS if swept[strength, key]["edit_clip"] > gate]
        assert row["strength"] == (passing[0] if passing else RUNGS[-1])
        assert row["status"] == (OK if passing else "rejected_quality")
        if passing:
            assert row["output_sha256"] == swept[passing[0], key]["output_sha256"]
            assert row["output_uri"].endswith("_smile_auto.png")
        strengths.add(row["strength"])
    assert len(strengths) > 1
    assert asyrp("verify", tmp_path, "--deep").returncode == 0


def test_a_bisection_finds_what_lies_between_the_rungs(source, tmp_path, swept):
    gate = np.median([row["edit_clip"] for (strength, _), row in swept.items() if strength == 1.5])
    inspection = {"gates": [f"edit_clip > {gate}"], "search": {"low": 0.5, "high": 2.0, "steps": 3}}
    found = done(source, tmp_path, inspection, edits=["smile=1"], t_boost=300)
    assert any(row["strength"] not in RUNGS for row in found.values())
    for row in found.values():
        assert (row["edit_clip"] > gate) == (row["status"] == OK)


def test_strengths_multiply_the_edits_own(source, tmp_path):
    inspection = {"gates": ["edit_clip > 0"], "search": [0.5]}
    found = done(source, tmp_path, inspection, edits=["glasses=-2"])
    assert {row["strength"] for row in found.values()} == {-1.0}


@pytest.mark.parametrize(
    ("inspection", "sentence"),
    [
        ({"metrics": ["sdir"]}, "there is no metric 'sdir'"),
        ({"gates": ["s_dir"]}, "'s_dir' is no condition"),
        ({"gates": ["s_dir > high"]}, "'s_dir > high' compares with no number"),
        ({"gates": ["score.beard > 0"]}, "is on nothing that is measured"),
        ({"metrics": ["identity"]}, "needs a face model"),
        ({"metrics": ["kept"]}, "needs a classifier"),
        ({"search": [1.0]}, "a search needs gates"),
        ({"gates": ["s_dir > 0"], "sample": 0.1}, "sample must be 1"),
        ({"gates": ["s_dir > 0"], "retry": {"refine": 2}}, "retry is for images"),
    ],
)
def test_an_inspection_that_makes_no_sense_is_one_sentence(inspection, sentence):
    with pytest.raises(ValidationError) as refused:
        InspectionSpec.model_validate(inspection)
    [error] = refused.value.errors()
    assert sentence in error["msg"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--metric", "recon_psnr", "--stages", "staged"], "take --stages fused"),
        (["-e", "glasses=2", "--gate", "s_dir > 0", "--search", "1"], "give each edit once"),
        (["-e", "glasses=1,smile=1", "--metric", "s_dir"], "give inspection.texts with 'glasses=1,smile=1:"),
        (["--metric", "identity", "--set", "inspection.identity=face.pt"], "there is no face model"),
        (["--metric", "recon_lpips"], "LPIPS needs the AlexNet weights"),
        (["--search", "half", "--gate", "s_dir > 0"], "inspection.search.0"),
        (["--set", "inspection.gate=1"], "did you mean 'gates'"),
    ],
)
@pytest.mark.usefixtures("ray_cluster")
def test_what_cannot_be_inspected_is_said_before_any_image(source, tmp_path, flags, sentence, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    output = tmp_path / "out"
    few = ["--n-inv", "3", "--n-gen", "3", "--limit", "2", "--no-check", "--preview", "0"]
    done = asyrp("run", "-s", source, "-o", output, "-e", "glasses=1", *few, *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sentence in " ".join(done.stderr.split())
    assert not list(output.rglob("*.png"))


def test_code_in_the_root_of_a_run_is_refused(tmp_path):
    """Whoever may write to a root may write run.json, from which `retry` and `extend` take the spec."""
    code = tmp_path / "out" / "data" / "face.py"
    code.parent.mkdir(parents=True)
    code.write_text("raise SystemExit('it ran')")
    inspection = {"metrics": ["identity"], "identity": f"{code}:embed"}
    with pytest.raises(UserError, match="is code in the output"):
        resolve(spec(SAMPLES, tmp_path / "out", inspection=inspection))


def test_a_run_does_not_go_on_with_other_gates(source, tmp_path):
    done(source, tmp_path, {"gates": ["edit_clip < 10"]})
    few = ["--n-inv", "8", "--n-gen", "8", "--refine", "1", "--shard-size", "4", "--preview", "0", "--no-check"]
    again = asyrp("run", "-s", source, "-o", tmp_path, "-e", "glasses=1", *few, "--gate", "edit_clip < 5")
    assert again.returncode == 2 and "inspection.gates" in again.stderr
