"""Project, combine, scale, average, compare: linear algebra on directions, and their commands."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from asyrp.directions import algebra as dm
from asyrp.directions.forms import (
    Direction,
    GlobalDirection,
    HoDeltaBlock,
    TimestepDirection,
    load_direction,
    save_direction,
)
from asyrp.directions.info import DirectionInfo
from asyrp.errors import UserError
from asyrp.learning.labels import noised_h
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from jobs.learn import preview
from jobs.learn.average import average_over_images
from jobs.learn.request import LearnRequest
from jobs.runs.run import run
from pipeline.images.codec import decode
from tests.support.runs import FEW_STEPS, SAMPLES, asyrp


def direction(name: str, seed: int, grid=(100, 500, 900), n_steps: int = 40, t_edit: int | None = None) -> Direction:
    tensors = torch.randn(len(grid), 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    return Direction(
        DirectionInfo(name, "timestep", "abc", n_steps, t_edit), TimestepDirection(tensors, torch.tensor(grid))
    )


def tensors(*found: Direction) -> list[torch.Tensor]:
    return dm.on_common_grid(found)[1]


@pytest.mark.parametrize("jointly", [False, True])
def test_what_is_left_of_a_projection_is_orthogonal_to_every_other(jointly):
    a, b, c = direction("a", 0), direction("b", 1), direction("c", 2)
    mixed = dm.combine([(a, 1.0), (b, 3.0), (c, -2.0)])
    related = dm.combine([(b, 1.0), (c, 0.8)])  # not orthogonal to b: one after the other would leave a rest
    left = dm.project(mixed, [b, related], jointly)
    for other in (b, c):
        products = (tensors(left)[0] * tensors(other)[0]).flatten(1).sum(1)
        assert (products.sum().abs() if jointly else products.abs().max()) < 1e-3
    again = dm.project(left, [b, related], jointly)
    torch.testing.assert_close(*tensors(left, again), rtol=1e-3, atol=1e-4)


def test_of_a_direction_in_the_span_of_the_others_nothing_is_left():
    a, b = direction("a", 0), direction("b", 1)
    with pytest.raises(UserError, match="nothing of direction 'a' is left"):
        dm.project(dm.combine([(a, 1.0), (b, 2.0)]), [b, a])


def test_a_sum_is_the_sum_of_its_terms_in_the_steps_of_the_first():
    a, b = direction("a", 0), direction("b", 1, n_steps=20)
    total = dm.combine([(a, 2.0), (b, -1.0)])
    expected = 2 * a.form.delta_h - b.form.delta_h * 20 / 40
    torch.testing.assert_close(total.form.delta_h, expected)
    assert total.info.n_steps == 40


def test_a_direction_is_zero_below_its_own_interval():
    a, b = direction("a", 0, t_edit=500), direction("b", 1, grid=(100, 300, 900), t_edit=100)
    total = dm.combine([(a, 1.0), (b, 1.0)])
    assert total.form.grid.tolist() == [100, 300, 500, 900]
    assert total.info.t_edit == 100
    torch.testing.assert_close(total.form.delta_h[0], b.form.delta_h[0])
    torch.testing.assert_close(total.form.delta_h[3], a.form.delta_h[2] + b.form.delta_h[2])


def test_a_direction_that_begins_later_is_zero_above():
    a, b = direction("a", 0, t_edit=100), direction("b", 1)
    late = dm.begin_at(a, 500)
    [own] = tensors(late)
    assert torch.equal(own[:2], a.form.delta_h[:2]) and not own[2].any()
    torch.testing.assert_close(dm.average_over_time(late).form.delta_h, a.form.delta_h[:2].mean(0))
    assert dm.combine([(late, 1.0), (dm.begin_at(b, 600), 1.0)]).info.t_start == 600
    assert dm.combine([(late, 1.0), (b, 1.0)]).info.t_start is None
    with pytest.raises(UserError, match="'a' ends at 100, so it cannot begin at 99"):
        dm.begin_at(a, 99)


def test_scaling_and_averaging_over_time():
    a = direction("a", 0, t_edit=500)
    torch.testing.assert_close(dm.scale(a, -2).form.delta_h[1:], -2 * a.form.delta_h[1:])
    mean = dm.average_over_time(a)
    assert mean.info.form == "global"
    torch.testing.assert_close(mean.form.delta_h, a.form.delta_h[1:].mean(0))


def test_one_tensor_for_all_timesteps_acts_in_its_interval_and_nowhere_else():
    everywhere = dm.average_over_time(direction("a", 0, t_edit=500))
    doubled = dm.scale(dm.scale(everywhere, 4.0), 0.5)
    for t, own in zip(doubled.form.grid.tolist(), tensors(doubled)[0], strict=True):
        torch.testing.assert_close(own, 2 * everywhere.form.delta_h * (t >= 500))
    total = dm.combine([(everywhere, 1.0), (direction("b", 1), 1.0)])
    torch.testing.assert_close(total.form.delta_h[0], direction("b", 1).form.delta_h[0])
    again = dm.average_over_time(dm.scale(everywhere, 3.0))
    torch.testing.assert_close(again.form.delta_h, 3 * everywhere.form.delta_h)


def test_cosines_are_those_of_the_flattened_tensors():
    a, b = direction("a", 0), direction("b", 1)
    found = dm.cosines([a, b, dm.scale(a, -3.0)])
    expected = torch.nn.functional.cosine_similarity(a.form.delta_h.flatten(), b.form.delta_h.flatten(), dim=0)
    torch.testing.assert_close(found[0], torch.stack([torch.tensor(1.0), expected, torch.tensor(-1.0)]))


def test_directions_of_other_models_and_functions_are_refused():
    a = direction("a", 0)
    stranger = Direction(DirectionInfo("s", "global", "other", 40), GlobalDirection(torch.zeros(4, 3, 3)))
    with pytest.raises(UserError, match="'a' and 's' belong to different models"):
        dm.combine([(a, 1.0), (stranger, 1.0)])
    block = Direction(DirectionInfo("f", "implicit", "abc", 40), HoDeltaBlock(32, 8))
    with pytest.raises(UserError, match="'f' is an implicit function: average it"):
        dm.scale(block, 2.0)


@pytest.mark.usefixtures("without_ray")
def test_the_mean_of_an_implicit_direction_is_that_over_the_images(tmp_path):
    folder = find_model("avatars")
    torch.manual_seed(0)
    block = HoDeltaBlock(160, 128)
    info = DirectionInfo("f", "implicit", folder.digest, n_steps=10, t_edit=800)
    save_direction(Direction(info, block), tmp_path / "f.safetensors")
    request = LearnRequest(f"{SAMPLES}/face_0[0-4].png", "avatars", tmp_path / "x.safetensors", shard_size=2)
    found = average_over_images(request, tmp_path / "f.safetensors")
    keys = [f"face_0{i}.png" for i in range(5)]
    x_0 = torch.stack([torch.from_numpy(decode((SAMPLES / key).read_bytes(), 32, "crop").pixels) for key in keys])
    model = load_model(folder)
    with torch.inference_mode():
        expected = noised_h(model.unet, model.schedule, x_0, keys, found.form.grid.tolist(), 0, block).mean(0)
    assert found.form.grid.tolist() == [888, 999]
    torch.testing.assert_close(found.form.delta_h, expected, rtol=1e-4, atol=1e-5)
    assert found.info.notes["averaged over"] == "5 images"


def test_the_commands_make_directions_that_can_be_used(tmp_path):
    made = tmp_path / "made.safetensors"
    for command in (
        ("project", "beard", "--out", "long_hair", "-o", made),
        ("combine", "smile=1", "beard=-0.5", "-o", made),
        ("scale", "smile", "1.5", "-o", made),
        ("begin", "smile", "400", "-o", made),
        ("average", "smile", "--over-time", "-o", made),
    ):
        done = asyrp("directions", *command, "--name", "mine")
        assert done.returncode == 0, done.stderr
        assert load_direction(made).info.name == "mine"
    table = json.loads(asyrp("directions", "compare", "smile", made, "--json").stdout)
    assert table["names"] == ["smile", "mine"]
    assert table["cosines"][0][1] > 0.5


@pytest.fixture
def few_steps(monkeypatch, without_ray):  # noqa: ARG001
    """Sheets in fewer steps than their commands take."""
    monkeypatch.setattr(preview, "run", lambda spec: run(spec.model_copy(update=FEW_STEPS | {"preview": spec.preview})))


@pytest.mark.usefixtures("few_steps")
def test_show_draws_a_sweep_on_the_models_samples_and_the_length_of_delta_h(tmp_path, cli):
    code, out, err = cli("directions", "show", "long_hair", "--sweep", tmp_path / "sweep.png", "--json")
    assert code == 0, err
    lengths = json.loads(out)["length_of_delta_h"]
    direction = load_direction(find_model("avatars").direction_files()["long_hair"])
    expected = direction.form.delta_h.flatten(1).norm(dim=1)
    assert list(map(int, lengths)) == direction.form.steps
    np.testing.assert_allclose(list(lengths.values()), expected, rtol=1e-5)
    with Image.open(tmp_path / "sweep.png") as sheet:
        assert sheet.width > 7 * sheet.height / 5


@pytest.mark.usefixtures("few_steps")
def test_a_preview_shows_images_by_strengths(tmp_path, cli):
    command = ("directions", "preview", "glasses", "-s", SAMPLES, "-o", tmp_path / "p.png", "--rows", "2")
    code, _, err = cli(*command, "--no-check")
    assert code == 0, err
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width > 8 * 128 and sheet.height > 2 * 128


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("combine", "smile=much"), "not of the form DIRECTION=WEIGHT"),
        (("average", "smile"), "one tensor per timestep already"),
        (("scale", "smlie", "2"), "there is no direction file"),
    ],
)
def test_a_mistake_in_a_command_is_one_sentence(command, message, tmp_path, cli):
    code, _, err = cli("directions", *command, "-o", tmp_path / "x.safetensors")
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
