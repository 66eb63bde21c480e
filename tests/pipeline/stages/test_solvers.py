"""Runs with each solver: what an image costs, what is kept of it, and what its edits depend on."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from asyrp.errors import UserError
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from jobs.runs.estimate import estimate
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.runs.run_file import read_run
from pipeline.images.codec import decode
from pipeline.run.commit import read_commit
from pipeline.run.sinks import DamagedOutput
from pipeline.stages.editor import make_solver
from pipeline.storage.store import Store
from tests.support.runs import SAMPLES, digests, make_faces, pixels, rewrite_file, rows, run_here, spec

STEPS = {"n_inv": 8, "n_gen": 8}
EARLY, LATE = "long_hair=1", "glasses=1"
"""Bundled directions: one begins at T, the other at 450."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("solvers") / "faces", 5)


def done(source, output, **changes):
    run_here(resolve(spec(source, output, **{**STEPS, **changes})))
    return rows(output)


@pytest.mark.parametrize(("stages", "t_boost"), [("fused", 0), ("staged", 0), ("fused", 700)])
def test_an_edit_does_not_depend_on_the_other_edits_of_the_run(source, tmp_path, stages, t_boost):
    alone = done(source, tmp_path / "alone", edits=[LATE], t_boost=t_boost)
    beside = done(source, tmp_path / "beside", edits=[EARLY, LATE], stages=stages, t_boost=t_boost)
    for name, row in alone.items():
        assert beside[name]["output_sha256"] == row["output_sha256"]


def test_an_edit_of_strength_0_is_the_source_to_the_byte(source, tmp_path):
    edited = done(source, tmp_path, model="avatars", edits=["long_hair=0"], preview=3)
    for (key, _, _), row in edited.items():
        face = decode((source / key).read_bytes(), 32, "exact").pixels
        assert np.array_equal(pixels(tmp_path, row), np.rint(face * 127.5 + 127.5).transpose(1, 2, 0))
        assert row["solver"] == "dpmpp_2m"
    assert all(row["recon_psnr"] < 60 for row in rows(tmp_path, "reconstruct").values()), "that of the plain process"


def test_inversions_are_edited_again_to_the_same_bytes_and_go_no_higher_than_they_were_made(source, tmp_path):
    done(source, tmp_path / "staged", edits=[LATE], stages="staged")
    fused = done(source, tmp_path / "fused", edits=["smile=1"])
    again = done(source, tmp_path / "again", edits=["smile=1"], inversions=str(tmp_path / "staged"))
    assert digests(tmp_path / "again") == digests(tmp_path / "fused") and len(again) == len(fused) == 5
    too_high = resolve(spec(source, tmp_path / "high", **STEPS, edits=[EARLY], inversions=str(tmp_path / "staged")))
    with pytest.raises(UserError, match=r"go up to timestep 450.*these edits begin at T: invert again"):
        open_run(Store(str(tmp_path / "high")), too_high)
    for process in ({"solver": "ddim"}, {"n_inv": 9, "n_gen": 9}):
        other = spec(
            source, tmp_path / "other", **{**STEPS, **process}, edits=[LATE], inversions=str(tmp_path / "staged")
        )
        with pytest.raises(UserError, match="cannot be used here, they differ in"):
            open_run(Store(str(tmp_path / "other")), resolve(other))


def test_inversions_give_their_process_to_a_run_that_names_none(source, tmp_path):
    left_out = {"n_inv": None, "n_gen": None, "inversions": str(tmp_path / "staged")}
    done(source, tmp_path / "staged", edits=[LATE], stages="staged", refine=1)
    resolved = resolve(spec(source, tmp_path / "again", **left_out, edits=["smile=1"]))
    assert (resolved.settings.solver, resolved.settings.n_inv, resolved.settings.refine) == ("ddim", 8, 1)


def test_a_staged_run_keeps_the_source_and_the_predicted_images_in_half_precision(source, tmp_path):
    asked = spec(source, tmp_path, edits=[LATE], stages="staged", **STEPS)
    resolved = resolve(asked)
    run_here(resolved)
    store = Store(str(tmp_path))
    [file] = [file.path for file in read_commit(store, "invert", 0).files if file.path.endswith("safetensors")]
    kept = load(store.read(file))
    solver = make_solver(resolved.settings, load_model(find_model("avatars")))
    assert {(array.dtype.name, array.shape) for array in kept.values()} == {("float16", (3 * solver.kept, 32, 32))}
    expected = 5 * 3 * 32 * 32 * (2 * solver.kept + 4) / 1e6
    assert estimate(resolve(asked)).latent_megabytes == pytest.approx(expected)


def _cut(latents):
    return {name: array[..., :16] if index == 0 else array for index, (name, array) in enumerate(latents.items())}


def _without_one(latents):
    return dict(list(latents.items())[1:])


@pytest.mark.parametrize("change", [_cut, _without_one])
def test_latents_that_somebody_changed_with_their_record_are_one_sentence(source, tmp_path, change):
    resolved = resolve(spec(source, tmp_path, edits=[LATE], stages="staged", **STEPS))
    run_here(resolved, stages=resolved.stages[:1])
    store = Store(str(tmp_path))
    rewrite_file(store, "invert", 0, ".safetensors", lambda data: save(change(load(data))))
    with pytest.raises(DamagedOutput, match="does not hold the latents that its manifest names"):
        run_here(resolved, stages=resolved.stages[1:])


@pytest.mark.parametrize(
    ("edit", "preset", "most"),
    [(EARLY, "default", 46), (EARLY, "fast", 32), (LATE, "default", 27), (LATE, "fast", 19), (EARLY, "paper", 93)],
)
def test_an_edit_takes_no_more_calls_than_promised(tmp_path, edit, preset, most):
    asked = spec(SAMPLES, tmp_path, edits=[edit], preset=preset, n_inv=None, n_gen=None, t_edit=None, limit=1)
    if edit == EARLY:
        asked = asked.model_copy(update={"t_edit": type(asked.t_edit)(514)})
    found = estimate(resolve(asked))
    assert found.encodes_per_image + 0.73 * (found.decodes_per_image - found.encodes_per_image) <= most


def test_a_run_records_the_process_it_took_and_goes_on_with_it(source, tmp_path):
    asked = spec(source, tmp_path, n_inv=None, n_gen=None, preset="fast", limit=1)
    run_here(resolve(asked))
    recorded = read_run(Store(str(tmp_path)))
    assert [recorded["spec"][name] for name in ("solver", "n_inv", "n_gen", "refine")] == ["dpmpp_2m", 14, 14, 0]
    left_out = resolve(spec(source, tmp_path, n_inv=None, n_gen=None, limit=1))
    assert left_out.identity == resolve(asked).identity == recorded["identity"]
    with pytest.raises(UserError, match="n_inv: 14 there, 20 here"):
        open_run(
            Store(str(tmp_path)), resolve(spec(source, tmp_path, n_inv=None, n_gen=None, preset="default", limit=1))
        )


def test_a_search_finds_the_image_that_its_strength_makes(source, tmp_path):
    search = {"gates": ["edit_clip > 0.02"], "search": [0.5, 1.0, 1.5]}
    found = done(source, tmp_path / "search", edits=[LATE], inspection=search)
    for strength in {row["strength"] for row in found.values()}:
        plain = done(source, tmp_path / f"{strength:g}", model="avatars", edits=[f"glasses={strength:g}"])
        by_key = {key: row for (key, _, _), row in plain.items()}
        for (key, _, _), row in found.items():
            if row["strength"] == strength and row["status"] == "ok":
                assert row["output_sha256"] == by_key[key]["output_sha256"]


def test_an_edit_that_would_act_in_no_step_is_refused(tmp_path):
    between = spec(SAMPLES, tmp_path, edits=["smile=1"], t_edit=440, limit=1)
    with pytest.raises(UserError, match=r"the edit 'smile' would change nothing: .* ends at t_edit 440"):
        estimate(resolve(between))
