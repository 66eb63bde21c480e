"""Intervals learned by measurement: the distances, the rules that read them, and the runs that use them."""

import csv
import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from asyrp.diffusion.process import predict, predicted_x0
from asyrp.diffusion.schedule import timesteps
from asyrp.directions import presets
from asyrp.directions.forms import Direction, load_direction, save_direction
from asyrp.errors import UserError
from asyrp.measures import intervals
from asyrp.measures.interval_curves import CurveSums, inversion_distances
from asyrp.measures.intervals import Curve, Intervals, Thresholds, first_at_least, load, load_for, save
from asyrp.measures.perceptual import load_measure
from asyrp.mergeable import merge_stored
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from jobs.learn.intervals import IntervalsRequest, learn_intervals, sampled_keys
from jobs.runs.growth import spec_of
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.runs.run_file import read_run
from jobs.spec.run import EngineSpec
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store
from tests.support.official import OFFICIAL
from tests.support.runs import FEW_STEPS, SAMPLES, make_faces, rows, run_here, spec

edit_spec = partial(spec, model="avatars")

pytestmark = pytest.mark.usefixtures("own_cache")
DATA_SETS = ("celeba", "church", "bedroom", "afhq", "metface")
DIGEST = find_model("avatars").digest
GRID = (0, 250, 500, 750, 999)
KNOWN = Intervals(
    model="avatars",
    model_digest=DIGEST,
    measure="lpips",
    images=3,
    timesteps=GRID,
    p_t=Curve((0.0, 0.2, 0.31, 0.34, 0.9), (0.0,) * 5),
    x_t=Curve((0.0, 0.9, 1.25, 1.3, 1.4), (0.0,) * 5),
    thresholds=Thresholds(0.33, 1.2),
)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No AlexNet on this machine, and nowhere to fetch it from."""

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", refuse)


def released(name: str, kind: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    with (OFFICIAL / "lpips" / f"{name}_LPIPS_distance_{kind}.tsv").open() as file:
        curve = sorted((int(t), float(value)) for t, value in csv.reader(file, delimiter="\t"))
    return tuple(t for t, _ in curve), tuple(value for _, value in curve)


def released_intervals(name: str, measure: str = "lpips") -> Intervals:
    grid, p_t = released(name, "x0_t")
    _, x_t = released(name, "x")
    curves = {"p_t": Curve(p_t, ()), "x_t": Curve(x_t, ())}
    found = intervals.thresholds(measure, **curves)
    return replace(KNOWN, timesteps=grid, thresholds=found, measure=measure, **curves)


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_rules_make_the_presets_of_the_released_curves(name):
    found = released_intervals(name)
    assert found.t_boost() == presets.t_boost(name)
    for percent in range(40, 101):
        assert found.t_edit(percent / 100) == presets.t_edit(name, percent / 100)


def test_the_heights_for_other_measures_are_the_median_of_the_released_curves():
    def heights(kind: str, level: float) -> list[float]:
        curves = [released(name, kind)[1] for name in DATA_SETS]
        return [(level - values[0]) / (values[-1] - values[0]) for values in curves]

    assert statistics.median(heights("x0_t", 0.33)) == pytest.approx(intervals.T_EDIT_HEIGHT, abs=5e-4)
    assert statistics.median(heights("x", 1.2)) == pytest.approx(intervals.T_BOOST_HEIGHT, abs=5e-4)


def test_a_rule_picks_the_smallest_timestep_that_reaches_its_level():
    assert first_at_least(GRID, (0.0, 0.5, 0.4, 0.5, 0.6), 0.5) == 250
    assert first_at_least(GRID, (0.0, 0.5, 0.4, 0.5, 0.6), 0.7) is None


def test_t_edit_falls_with_the_distance_of_the_texts_and_t_boost_does_not_depend_on_them():
    assert [KNOWN.t_edit(cosine) for cosine in (1, 0.93, 0.6, 0.01)] == [750, 500, 250, 250]
    assert KNOWN.t_boost() == 500
    for cosine in (0, -0.2, 1.1):
        with pytest.raises(UserError, match="give one above 0 and up to 1"):
            KNOWN.t_edit(cosine)


def test_another_measure_has_the_same_heights_whatever_its_scale():
    p_t, x_t = Curve((0.0, 1.0, 2.0), ()), Curve((0.0, 4.0, 5.0), ())
    found = intervals.thresholds("clip:avatars", p_t, x_t)
    assert found == Thresholds(pytest.approx(2 * 0.283), pytest.approx(5 * 0.864))
    assert intervals.thresholds("lpips", p_t, x_t) == Thresholds(0.33, 1.2)


def test_an_image_has_no_distance_to_itself_and_some_to_every_other():
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    measure = load_measure("clip:avatars", "cpu")
    assert torch.equal(measure(x, x), torch.zeros(3))
    assert measure(x, x.flip(0))[[0, 2]].min() > 0.01


def test_p_t_counts_for_the_timestep_at_which_it_was_predicted():
    model = load_model(find_model("avatars"))
    x_0 = torch.rand(2, 3, 32, 32) * 2 - 1

    def difference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().mean((1, 2, 3))

    found = inversion_distances(model.unet, model.schedule, difference, x_0, (0, 500, 999))
    with torch.inference_mode():
        p_0 = predicted_x0(x_0, predict(model.unet, x_0, 0), model.schedule.level(0))
    assert found.shape == (2, 2, 3)
    torch.testing.assert_close(found[:, 0, 0], difference(x_0, p_0))
    assert torch.equal(found[:, 1, 0], torch.zeros(2))


def test_sums_add_up_in_any_order_to_mean_and_spread():
    distances = torch.rand(7, 2, 4)
    parts = [CurveSums() for _ in range(3)]
    for index, row in enumerate(distances):
        parts[index % 2].add(row)
    merged, turned = merge_stored(CurveSums, [part.tensors() for part in parts]), CurveSums()  # the last has no image
    for part in reversed(parts):
        turned.merge(part)
    assert merged.images == 7
    torch.testing.assert_close(torch.tensor(merged.curves()["p_t"].mean), distances[:, 0].mean(0))
    torch.testing.assert_close(torch.tensor(merged.curves()["x_t"].std), distances[:, 1].std(0, correction=0))
    torch.testing.assert_close(merged.sums, turned.sums, rtol=1e-14, atol=0)


@pytest.mark.usefixtures("without_ray", "no_network")
@pytest.mark.slow
def test_curves_are_learned_the_same_by_one_actor_or_two_and_rise_towards_noise(tmp_path, capsys):
    faces = make_faces(tmp_path / "faces", 5)
    (faces / "broken.png").write_bytes(b"no image")

    def learn(actors: int, work: str | None = None) -> Intervals:
        engine = EngineSpec.model_validate({"check": False, "actors": actors, "batch_size": 2})
        return learn_intervals(
            IntervalsRequest(str(faces), "avatars", engine, n_inv=5, work=work, shard_size=3)  # fewer than 100
        )

    learned = learn(1, str(tmp_path / "work"))
    assert "so the measure is clip:avatars" in capsys.readouterr().err.replace("\n", " ")
    assert (learned.images, learned.measure, learned.model_digest) == (5, "clip:avatars", DIGEST)
    assert learned.timesteps == tuple(timesteps(5))
    for curve in (learned.p_t, learned.x_t):
        assert list(curve.mean) == sorted(curve.mean) and curve.mean[0] < 0.01 and min(curve.std[1:]) > 0
    assert learn(1, str(tmp_path / "work")) == learned
    for name, curve in vars(learn(2)).items():
        if isinstance(curve, Curve):
            torch.testing.assert_close(vars(curve), vars(getattr(learned, name)), rtol=1e-4, atol=1e-6)


def test_a_sample_of_images_is_the_same_in_any_order_and_all_where_there_are_fewer(monkeypatch, faces):
    source = str(faces(6))
    listed = list(list_images(source))
    some = sampled_keys(source, 3)
    monkeypatch.setattr("jobs.learn.intervals.list_images", lambda _: reversed(listed))
    assert sampled_keys(source, 3) == some and len(some) == 3
    assert sampled_keys(source, 100) == {image.key for image in listed}


@pytest.mark.usefixtures("no_network")
def test_lpips_without_its_backbone_is_one_sentence(cli):
    code, out, err = cli("intervals", "learn", "-s", SAMPLES, "--measure", "lpips")
    sentence = err.replace("\n", " ")
    assert code == 2 and out == "" and "LPIPS needs the AlexNet weights" in sentence and "no network" in sentence
    assert "checkpoints" in sentence and "Traceback" not in out + err


def test_lpips_with_its_backbone_on_this_machine_needs_no_network(monkeypatch, tmp_path):
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(alexnet().state_dict(), tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    measure, x = load_measure("lpips", "cpu"), torch.rand(2, 3, 32, 32)
    assert torch.equal(measure(x, x), torch.zeros(2)) and measure(x, x.flip(0)).min() > 0


def test_a_measure_that_there_is_not_is_one_sentence(cli):
    code, _, err = cli("intervals", "learn", "-s", SAMPLES, "--measure", "ssim")
    assert code == 2 and "--measure ssim: give auto, lpips, clip or clip:NAME" in err


def test_a_file_keeps_everything_and_is_shown_with_its_curves(cli, tmp_path):
    save(KNOWN, tmp_path / "i.json")
    assert load(tmp_path / "i.json") == KNOWN
    plot = tmp_path / "plots" / "i.png"
    code, out, _ = cli("intervals", "show", tmp_path / "i.json", "--text-cosine", "0.9", "-o", plot, "--json")
    facts = json.loads(out)
    assert (code, facts["t_edit"], facts["t_boost"], facts["measure"]) == (0, 500, 500, "lpips")
    assert facts["p_t"] == list(KNOWN.p_t.mean) and facts["t_edit_by_text_cosine"]["1.00"] == 750
    assert len(Image.open(plot).convert("RGB").getcolors(10**6)) > 5
    texts = ("--source-text", "person", "--target-text", "person with glasses", "--json")
    save(KNOWN, intervals.learned_path(DIGEST))
    code, out, _ = cli("intervals", "show", *texts)
    assert code == 0 and json.loads(out)["text_cosine"] == pytest.approx(0.2564, abs=1e-3)
    code, _, err = cli("intervals", "show", tmp_path / "i.json", "--source-text", "person")
    assert code == 2 and "give both --source-text and --target-text" in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "there is no file of intervals"), ("{", "cannot be read"), ("[]", "is no file of intervals")],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "i.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "i.json")


def save_glasses(path: Path, **changes: Any) -> str:
    """The bundled direction of glasses, from T on, as a file."""
    glasses = load_direction(find_model("avatars").direction_files()["glasses"])
    save_direction(Direction(replace(glasses.info, t_start=None, **changes), glasses.form), path)
    return str(path)


def test_a_run_takes_the_intervals_learned_for_its_model_and_is_known_by_their_numbers(tmp_path):
    save(KNOWN, intervals.learned_path(DIGEST))
    edits = ["glasses=1,long_hair=0.5", "long_hair=1"]
    given = {"directions": {"glasses": save_glasses(tmp_path / "g.safetensors")}, "t_edit": "auto", "t_boost": "auto"}
    auto = edit_spec(make_faces(tmp_path / "faces", 2), tmp_path / "out", edits=edits, **given)
    resolved = resolve(auto)
    assert (resolved.spec.t_edit.model_dump(), resolved.spec.t_boost) == ({"glasses": 750, "long_hair": 750}, 500)
    assert "auto" not in json.dumps(resolved.identity)
    assert (
        resolved.identity == resolve(auto.model_copy(update={"t_edit": resolved.spec.t_edit, "t_boost": 500})).identity
    )
    run_here(resolved)
    assert {(row["t_edit"], row["t_boost"]) for row in rows(tmp_path / "out").values()} == {(750, 500)}
    store = Store(str(tmp_path / "out"))
    assert read_run(store)["spec"]["t_edit"] == {"glasses": 750, "long_hair": 750}
    save(replace(KNOWN, thresholds=Thresholds(0.2, 1.2)), intervals.learned_path(DIGEST))
    with pytest.raises(UserError, match=r"t_edit.glasses: 750 there, 250 here"):
        open_run(store, resolve(auto))
    assert resolve(spec_of(str(tmp_path / "out"), auto.engine)).identity == resolved.identity


def test_a_direction_found_by_texts_stops_where_its_own_cosine_says(tmp_path):
    by_text = save_glasses(tmp_path / "d.safetensors", notes={"text_cosine": "0.9000"})
    save(KNOWN, tmp_path / "i.json")
    given = {"t_edit": "auto", "intervals": str(tmp_path / "i.json")}
    resolved = resolve(
        edit_spec(
            SAMPLES,
            tmp_path / "out",
            edits=["g=1,long_hair=1"],
            directions={"g": by_text},
            **given,
        )
    )
    [bound] = resolved.settings.edits
    assert bound.t_edits == (500, 750) and bound.t_boost == 0
    opposites = save_glasses(tmp_path / "e.safetensors", notes={"text_cosine": "-0.3"})
    with pytest.raises(UserError, match="the texts of direction 'g' are opposites"):
        resolve(edit_spec(SAMPLES, tmp_path, edits=["g=1"], directions={"g": opposites}, **given))


def test_a_direction_that_begins_later_than_it_would_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="direction 'smile' begins at 450, so it cannot end at 451"):
        resolve(edit_spec(SAMPLES, tmp_path / "out", edits=["smile=1"], t_edit=451))
    [bound] = resolve(edit_spec(SAMPLES, tmp_path / "out", edits=["smile=1"], t_edit=450)).settings.edits
    assert (bound.t_starts, bound.t_edits) == ((450,), (450,))


def test_auto_without_intervals_of_this_model_is_one_sentence(cli, tmp_path):
    run = ("run", "-s", SAMPLES, "-o", tmp_path / "out", "-e", "glasses=1", "--t-edit", "auto")
    code, _, err = cli(*run)
    assert code == 2 and "no intervals are known for the model avatars" in err and "asyrp intervals learn" in err
    save(replace(KNOWN, model_digest="0" * 64), tmp_path / "other.json")
    code, _, err = cli(*run, "--intervals", tmp_path / "other.json")
    assert code == 2 and "were measured on the model 000000000000, not on avatars" in err.replace("\n", " ")
    code, _, err = cli(*run[:-2], "--intervals", tmp_path / "other.json")
    assert code == 2 and "--intervals is of no use without --t-edit auto" in err.replace("\n", " ")
    with pytest.raises(UserError, match="no edit uses a direction 'hat'"):
        resolve(edit_spec(SAMPLES, tmp_path / "out", t_edit={"hat": 300}))


def test_per_image_every_edit_ends_where_the_distances_of_its_own_image_say(tmp_path):
    source, few = make_faces(tmp_path / "faces", 5), {"n_inv": 8, "n_gen": 8}
    distances = {"measure": "clip:avatars", "distances": {"glasses": 0.05}, "otherwise": {"glasses": 400}}
    run_here(resolve(edit_spec(source, tmp_path / "own", t_edit=distances, **few)))
    own = rows(tmp_path / "own")
    ends = {row["t_edit"] for row in own.values()}
    assert len(ends) > 1, "the images are too much alike for this test"
    for end in ends:
        run_here(resolve(edit_spec(source, tmp_path / str(end), t_edit=end, **few)))
    for name, row in own.items():
        assert row["output_sha256"] == rows(tmp_path / str(row["t_edit"]))[name]["output_sha256"]


def test_per_image_an_image_that_is_never_far_ends_where_the_others_do(tmp_path):
    source = make_faces(tmp_path / "faces", 2)
    distances = {"measure": "clip:avatars", "distances": {"glasses": 99.0}, "otherwise": {"glasses": 400}}
    run_here(resolve(edit_spec(source, tmp_path / "out", t_edit=distances)))
    assert {row["t_edit"] for row in rows(tmp_path / "out").values()} == {400}


def test_per_image_is_settled_to_the_distances_of_the_learned_intervals(tmp_path):
    save(KNOWN, intervals.learned_path(DIGEST))
    asked = edit_spec(make_faces(tmp_path / "faces", 2), tmp_path / "out", edits=["long_hair=1"], t_edit="per-image")
    resolved = resolve(asked)
    distances = {"long_hair": KNOWN.thresholds.t_edit}
    settled = {"measure": "lpips", "distances": distances, "otherwise": {"long_hair": 750}}
    assert resolved.spec.model_dump()["t_edit"] == resolved.identity["t_edit"] == settled
    with pytest.raises(UserError, match="nor end edits per image"):
        resolve(asked.model_copy(update={"stages": "staged"}))


def test_a_level_that_is_never_reached_asks_for_a_number(tmp_path):
    low = replace(KNOWN, x_t=Curve((0.0, 0.1, 0.2, 0.3, 0.4), (0.0,) * 5))
    save(low, intervals.learned_path(DIGEST))
    assert low.t_boost() is None and load_for(None, DIGEST, "avatars") == low
    with pytest.raises(UserError, match=r"never reach 1\.2: give --t-boost"):
        resolve(edit_spec(SAMPLES, tmp_path / "out", t_boost="auto", **FEW_STEPS))
