"""Directions, their files, edits and labels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from asyrp.diffusion.unet import Encoded
from asyrp.directions.edits import parse_edit
from asyrp.directions.forms import (
    AdmDeltaBlock,
    Direction,
    GlobalDirection,
    HoDeltaBlock,
    TimestepDirection,
    check_shape,
    load_direction,
    save_direction,
)
from asyrp.directions.info import DirectionInfo, check_model, read_info
from asyrp.errors import UserError
from asyrp.learning.labels import LabelSums


def info(form: str) -> DirectionInfo:
    return DirectionInfo(
        "smile",
        form,
        "abc",
        40,
        t_edit=300,
        t_boost=120,
        unit="unit",
        found_by="labels",
        found_on="9 images",
        notes={"by": "me"},
    )


FORMS = {
    "global": lambda: GlobalDirection(torch.randn(64, 4, 4)),
    "timestep": lambda: TimestepDirection(torch.randn(3, 64, 4, 4), torch.tensor([100, 500, 900])),
    "implicit": lambda: HoDeltaBlock(64, 32),
    "implicit, ADM": lambda: AdmDeltaBlock(64, 32),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_direction_file_gives_back_what_was_saved(form, tmp_path):
    direction = Direction(info(form.split(",")[0]), FORMS[form]())
    save_direction(direction, tmp_path / "d.safetensors")
    loaded = load_direction(tmp_path / "d.safetensors")
    assert loaded.info == direction.info
    encoded = Encoded(torch.randn(2, 64, 4, 4), (), torch.randn(2, 32), torch.zeros(2, 3, 8, 8), 0)
    torch.testing.assert_close(loaded.delta_h(encoded, 480, 40), direction.delta_h(encoded, 480, 40))


def test_a_direction_file_can_be_read_by_whoever_may_read_others_made_there(tmp_path):
    (tmp_path / "other").touch()
    save_direction(Direction(info("global"), GlobalDirection(torch.zeros(2, 1, 1))), tmp_path / "new" / "d.safetensors")
    assert (tmp_path / "new" / "d.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["d.safetensors"]


def test_a_file_from_before_directions_could_begin_later_begins_at_T(tmp_path):
    save_direction(Direction(info("global"), GlobalDirection(torch.zeros(2, 1, 1))), tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        older = {key: value for key, value in file.metadata().items() if key != "t_start"}
    save_file({"delta_h": torch.zeros(2, 1, 1)}, tmp_path / "old.safetensors", metadata=older)
    assert read_info(tmp_path / "old.safetensors") == info("global")


METADATA = {
    "n_steps": ["0", '"forty"', "null", "1e400", "[" * 100_000, "-3", "true"],
    "name": ["[1]", "{", ""],
    "model_digest": ["1"],
    "t_edit": ["0.5", '"500"'],
    "notes": ["[]", '{"a": []}'],
}


@pytest.mark.parametrize(("field", "text"), [(field, text) for field, texts in METADATA.items() for text in texts])
def test_metadata_of_another_type_is_one_sentence(tmp_path, field, text):
    path = tmp_path / "d.safetensors"
    save_direction(Direction(info("global"), GlobalDirection(torch.zeros(2, 1, 1))), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {field: text}
    save_file({"delta_h": torch.zeros(2, 1, 1)}, path, metadata=metadata)
    with pytest.raises(UserError, match=r"d\.safetensors is damaged, its metadata") as error:
        read_info(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["name", "form", "model_digest", "n_steps"])
def test_metadata_that_lacks_a_field_is_one_sentence(tmp_path, field):
    path = tmp_path / "d.safetensors"
    save_direction(Direction(info("global"), GlobalDirection(torch.zeros(2, 1, 1))), path)
    with safe_open(path, framework="pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != field}
    save_file({"delta_h": torch.zeros(2, 1, 1)}, path, metadata=metadata)
    with pytest.raises(UserError, match=rf"its metadata '{field}' is wrong: Field required"):
        read_info(path)


TENSORS = {
    "nan": ("global", {"delta_h": torch.full((2, 1, 1), float("nan"))}, "NaN or infinity"),
    "infinity": ("global", {"delta_h": torch.full((2, 1, 1), float("inf"))}, "NaN or infinity"),
    "infinity as float32": (
        "global",
        {"delta_h": torch.full((2, 1, 1), 1e300, dtype=torch.float64)},
        "NaN or infinity",
    ),
    "complex numbers": ("global", {"delta_h": torch.zeros(2, 1, 1, dtype=torch.complex64)}, "holds torch.complex64"),
    "truth values": ("global", {"delta_h": torch.zeros(2, 1, 1, dtype=torch.bool)}, "holds torch.bool"),
    "integers": ("global", {"delta_h": torch.zeros(2, 1, 1, dtype=torch.int64)}, "not those of a global direction"),
    "a grid of uint16": (
        "timestep",
        {"delta_h": torch.zeros(1, 1, 1, 1), "grid": torch.zeros(1, dtype=torch.uint16)},
        "holds torch.uint16",
    ),
    "a grid below 0": ("timestep", {"delta_h": torch.zeros(2, 1, 1, 1), "grid": torch.tensor([-3, 9])}, "ascending"),
    "another name": ("global", {"shift": torch.zeros(2, 1, 1)}, "not those of a global direction"),
    "another rank": ("global", {"delta_h": torch.zeros(2)}, "not those of a global direction"),
    "no tensors": ("timestep", {}, "not those of a timestep direction"),
    "a grid that descends": (
        "timestep",
        {"delta_h": torch.zeros(2, 1, 1, 1), "grid": torch.tensor([9, 3])},
        "ascending",
    ),
    "a short grid": ("timestep", {"delta_h": torch.zeros(2, 1, 1, 1), "grid": torch.tensor([9])}, "ascending"),
    "an empty grid": ("timestep", {"delta_h": torch.zeros(0, 1, 1, 1), "grid": torch.tensor([]).long()}, "ascending"),
    "no block": ("implicit", {"delta_h": torch.zeros(2)}, "no delta block has the tensors"),
    "half a block": ("implicit", {"temb_proj.weight": torch.zeros(32, 8)}, "not those of a delta block"),
    "a block of nothing": ("implicit", {"temb_proj.weight": torch.zeros(0)}, "not those of a delta block"),
    "another form": ("spherical", {"delta_h": torch.zeros(2, 1, 1)}, "its form is 'spherical'"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_none_of_a_direction_are_one_sentence(tmp_path, case):
    form, tensors, message = TENSORS[case]
    path = tmp_path / "d.safetensors"
    save_direction(Direction(info(form), GlobalDirection(torch.zeros(2, 1, 1))), path)
    with safe_open(path, framework="pt") as file:
        save_file(tensors, path, metadata=file.metadata())
    with pytest.raises(UserError, match=message) as error:
        load_direction(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_direction_for_an_h_of_another_shape_is_refused(form):
    direction = Direction(info(form.split(",")[0]), FORMS[form]())
    check_shape(direction, (64, 4, 4), 32)
    with pytest.raises(UserError, match="another shape"):
        check_shape(direction, (32, 4, 4), 32)


@pytest.mark.parametrize(("t", "index"), [(0, 0), (299, 0), (300, 1), (301, 1), (700, 2), (999, 2)])
def test_a_timestep_off_the_grid_takes_the_nearest_one(t, index):
    assert TimestepDirection(torch.zeros(3, 1, 1, 1), torch.tensor([100, 500, 900])).nearest(t) == index


def test_a_direction_of_another_model_is_refused_in_one_sentence():
    check_model(info("global"), "abc", "mine")
    with pytest.raises(UserError, match=r"'smile' was found on the model abc, not on mine .*learn .* again") as error:
        check_model(info("global"), "def", "mine")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_direction_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, message in {"weights": "no direction file", "text": "not a safetensors", "none": "there is no"}.items():
        with pytest.raises(UserError, match=message):
            read_info(tmp_path / f"{name}.safetensors")


def test_one_direction_is_an_edit_at_a_strength():
    edit = parse_edit("glasses=-1.5")
    assert (edit.name, edit.strength, edit.weights) == ("glasses", -1.5, (("glasses", 1.0),))
    assert parse_edit("glasses").strength == 1.0


def test_a_sum_is_named_by_its_terms():
    edit = parse_edit(" smile = 1.0 , beard=-0.5 ")
    assert (edit.name, edit.strength) == ("smile=1,beard=-0.5", 1.0)
    assert edit.weights == (("smile", 1.0), ("beard", -0.5))


@pytest.mark.parametrize("text", ["", "smile=", "smile=x", "=1", "smile=1,,beard=1", "smile=nan", "smile=1=2", "a b=1"])
def test_an_edit_that_does_not_parse_is_named(text):
    with pytest.raises(UserError, match="is not of the form direction=weight"):
        parse_edit(text)


def test_a_direction_named_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        parse_edit("smile=1,smile=2")


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(-9, 9)), min_size=2, max_size=6, unique_by=lambda p: p[0])
)
def test_the_name_of_a_sum_parses_to_the_same_sum(terms):
    edit = parse_edit(",".join(f"{name}={weight:g}" for name, weight in terms))
    assert parse_edit(edit.name) == edit


def random_images(n: int, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    y = torch.randint(0, 2, (n, labels), generator=generator).float()
    h = torch.randn(n, 2, 3, 3, generator=generator) + y.sum(1)[:, None, None, None]
    return y, h


def test_with_one_label_the_direction_is_the_difference_of_the_class_means():
    y, h = random_images(50, 1)
    sums = LabelSums(1)
    sums.add(y, h[:, None])
    expected = h[y[:, 0] == 1].mean(0) - h[y[:, 0] == 0].mean(0)
    torch.testing.assert_close(sums.directions()[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_with_all_labels_each_direction_holds_the_others_fixed():
    generator = torch.Generator().manual_seed(5)
    a = torch.randint(0, 2, (400, 1), generator=generator).float()
    b = (a + (torch.rand(400, 1, generator=generator) < 0.2).float()) % 2  # b goes with a, mostly
    y = torch.cat([a, b], dim=1)
    truth = torch.randn(2, 2, 3, 3, generator=generator)
    sums = LabelSums(2)
    sums.add(y, torch.einsum("bk,kchw->bchw", y, truth)[:, None])
    torch.testing.assert_close(sums.directions()[:, 0], truth, rtol=1e-4, atol=1e-4)


def test_sums_of_parts_add_up_in_any_order():
    y, h = random_images(30, 2)

    def sums_of(part: slice) -> LabelSums:
        sums = LabelSums(2)
        sums.add(y[part], h[part, None])
        return sums

    parts = [slice(20, 30), slice(0, 5), slice(5, 20)]
    merged = sums_of(parts[0])
    for part in parts[1:]:
        merged.merge(sums_of(part))
    torch.testing.assert_close(merged.directions(), sums_of(slice(0, 30)).directions())


def test_a_constant_label_is_refused():
    y, h = torch.ones(10, 1), torch.randn(10, 2, 3, 3)
    sums = LabelSums(1)
    sums.add(y, h[:, None])
    with pytest.raises(ValueError, match="constant"):
        sums.directions()
