"""Released directions: their import, their forward, and what the release says of their intervals."""

import csv
import json
import math

import pytest
import torch
from torch.nn import functional as F

from asyrp.diffusion.unet import Encoded, HSpaceUNet
from asyrp.directions import presets
from asyrp.directions.edits import official_sum, parse_edit
from asyrp.directions.forms import load_direction, save_direction
from asyrp.directions.info import DirectionInfo, read_info
from asyrp.directions.released import ReleaseDetails, details_from_name, import_direction
from asyrp.errors import UserError
from asyrp.models.checkpoint import Checkpoint
from asyrp.models.convert import convert, write_folder
from asyrp.models.find import find_model
from jobs.runs.resolve import resolve
from tests.support.official import OFFICIAL, write_released_block
from tests.support.reference_nets import AdmNet, HoNet, randomised
from tests.support.runs import SAMPLES, asyrp, rows, spec

FILES = {
    "smiling": "smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth",
    "church_gothic": "church_gothic_LC_church_outdoor_t999_ninv40_ngen40_0.pth",
    "dog_happy": "dog_happy_LC_dog_t999_ninv40_ngen40_0.pth",
}
WIDE = {"base": 128, "mult": (1, 4), "blocks": 1, "attention": ()}  # h of 512 channels, as the released blocks need


@pytest.fixture(scope="module")
def wide_models(tmp_path_factory):
    """A small net of each family whose h and time embedding are as wide as those of the papers' nets."""
    root = tmp_path_factory.mktemp("models")
    nets = {"ho": randomised(HoNet(**WIDE), 0), "adm": randomised(AdmNet(**WIDE, head_channels=64), 0)}
    for family, net in nets.items():
        converted = convert(Checkpoint("net.pt", net.state_dict(), ()), 16, head_channels=64)
        write_folder(converted, root / family, "net.pt")
    return {family: find_model(str(root / family)) for family in nets}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The released files by name of their direction."""
    folder = tmp_path_factory.mktemp("released")
    return {name: write_released_block(file, folder) for name, file in FILES.items()}


def family_of(name: str) -> str:
    return "adm" if name.startswith("dog") else "ho"


def independent_forward(state: dict, h: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
    """f_t(h, t) from the description of the blocks, in float64."""
    w = {key: value.double() for key, value in state.items()}
    h, emb = h.double(), emb.double()
    if "temb_proj.weight" in w:
        x = F.conv2d(h, w["conv1.weight"], w["conv1.bias"])
        x = x + F.linear(F.silu(emb), w["temb_proj.weight"], w["temb_proj.bias"])[:, :, None, None]
        x = F.silu(F.group_norm(x, 32, w["norm2.weight"], w["norm2.bias"], 1e-6))
        return F.conv2d(x, w["conv2.weight"], w["conv2.bias"])
    x = F.silu(F.group_norm(h, 32, w["in_layers.0.weight"], w["in_layers.0.bias"], 1e-5))
    x = F.conv2d(x, w["in_layers.2.weight"], w["in_layers.2.bias"])
    x = x + F.linear(F.silu(emb), w["emb_layers.1.weight"], w["emb_layers.1.bias"])[:, :, None, None]
    x = F.silu(F.group_norm(x, 32, w["out_layers.0.weight"], w["out_layers.0.bias"], 1e-5))
    return F.conv2d(x, w["out_layers.3.weight"], w["out_layers.3.bias"])


@pytest.mark.parametrize("name", FILES)
def test_a_released_block_imports_and_computes_what_it_did(name, released, wide_models, tmp_path):
    path, folder = released[name], wide_models[family_of(name)]
    save_direction(import_direction(path, folder, name, ReleaseDetails()), tmp_path / "d.safetensors")
    loaded = load_direction(tmp_path / "d.safetensors")
    encoded = HSpaceUNet(convert_back(folder)).encode(torch.randn(2, 3, 16, 16), 600)
    state = torch.load(path, weights_only=True, map_location="cpu")["0"]
    expected = independent_forward(state, encoded.h, encoded.emb)
    ours = loaded.delta_h(encoded, 600, n_steps=40).double()
    assert ((ours - expected).norm() / expected.norm()).item() < 1e-6
    half = loaded.delta_h(encoded, 600, n_steps=80).double()
    torch.testing.assert_close(half, expected / 2, rtol=1e-5, atol=1e-6)


def convert_back(folder):
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(folder.unet)


@pytest.mark.parametrize(
    ("name", "data_set", "t_edit", "t_boost", "target"),
    [
        ("smiling", "celeba", 516, 167, "smiling face"),
        ("church_gothic", "church", 370, 293, "Gothic Church"),
        ("dog_happy", "afhq", 444, 167, "Happy Dog"),
    ],
)
def test_what_a_released_file_does_not_say_is_found(name, data_set, t_edit, t_boost, target, released, wide_models):
    path = released[name]
    info = import_direction(path, wide_models[family_of(name)], name, ReleaseDetails()).info
    assert (info.n_steps, info.t_edit, info.t_boost, info.found_on) == (40, t_edit, t_boost, data_set)
    assert info.notes["target_text"] == target
    closer = import_direction(path, wide_models[family_of(name)], name, ReleaseDetails(text_cosine=1.0)).info
    assert closer.t_edit == presets.t_edit(data_set, 1.0) > t_edit
    stated = import_direction(path, wide_models[family_of(name)], name, ReleaseDetails(t_edit=600, t_boost=0)).info
    assert (stated.t_edit, stated.t_boost) == (600, 0)


def test_a_block_of_another_family_or_width_is_one_sentence(released, wide_models):
    for name, other in (("smiling", "adm"), ("dog_happy", "ho")):
        with pytest.raises(UserError, match=r"is a block for .* nets, and .* is a net of the") as error:
            import_direction(released[name], wide_models[other], name, ReleaseDetails())
        assert "\n" not in str(error.value)
    with pytest.raises(
        UserError, match="for an h of 512 channels and a time embedding of 512; avatars has 160 and 128"
    ):
        import_direction(released["dog_happy"], find_model("avatars"), "x", ReleaseDetails())


@pytest.mark.slow
def test_an_imported_direction_edits_images(released, wide_models, tmp_path):
    model = wide_models["ho"].root
    done = asyrp(
        "directions",
        "import",
        released["smiling"],
        "--model",
        model,
        "--name",
        "smiling",
        "-o",
        tmp_path / "s.safetensors",
    )
    assert done.returncode == 0, done.stderr
    few = ("--n-inv", "4", "--n-gen", "4", "--shard-size", "4", "--preview", "0", "--no-check")
    edits = ("--direction", tmp_path / "s.safetensors", "-e", "smiling=1", "-e", "reconstruction")
    done = asyrp("run", "-s", f"{SAMPLES}/face_0[0-3].png", "-o", tmp_path / "out", "--model", model, *edits, *few)
    assert done.returncode == 0, done.stderr
    written = rows(tmp_path / "out")
    assert {row["status"] for row in written.values()} == {"ok"}
    assert {(row["t_edit"], row["t_boost"]) for row in written.values() if row["edit"] == "smiling"} == {(516, 167)}


@pytest.mark.parametrize(
    ("file", "n_steps", "data_set", "texts"),
    [
        ("random_noise_man_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth", 40, "celeba", ("a person", "a man")),
        ("zombie_new_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth", 40, "celeba", ("Human", "Zombie")),
        ("hotel_LC_bedroom_t999_ninv40_ngen20_0.pth", 20, "bedroom", ("Bedroom", "Hotel Bedroom")),
        ("angry_LC_METFACES_t999_ninv40_ngen40_0.pth", 40, "metface",
         ("painting of a person", "painting of a Angry person")),
        ("mine.pth", None, None, None),
    ],
)  # fmt: skip
def test_a_released_file_name_says_grid_data_set_and_texts(file, n_steps, data_set, texts):
    facts = details_from_name(file)
    assert (facts.n_steps, facts.data_set, facts.texts) == (n_steps, data_set, texts)


def h_like(folder, value: float) -> torch.Tensor:
    return torch.full(folder.h_shape, float(value))


def test_tensors_per_timestep_import(tmp_path):
    folder = find_model("avatars")
    trained = {str(t): torch.nn.Parameter(h_like(folder, t)) for t in (999, 512, 768)}
    torch.save(trained, tmp_path / "free.pth")
    direction = import_direction(tmp_path / "free.pth", folder, "free", ReleaseDetails(n_steps=40))
    assert (direction.info.form, direction.info.t_edit) == ("timestep", 512)
    encoded = Encoded(torch.zeros(1, *folder.h_shape), (), torch.zeros(1, 128), torch.zeros(1, 3, 16, 16), 0)
    assert direction.delta_h(encoded, 760, 40).unique().tolist() == [768]


def test_a_file_of_means_leaves_out_the_mean_over_time(tmp_path):
    folder = find_model("avatars")
    means = {t: h_like(folder, t)[None] if t >= 500 else None for t in (250, 500, 750)}
    torch.save({**means, 0: h_like(folder, 9)[None]}, tmp_path / "mean.pth")
    direction = import_direction(tmp_path / "mean.pth", folder, "mean", ReleaseDetails(n_steps=40))
    assert direction.form.grid.tolist() == [500, 750]
    torch.save({0: h_like(folder, 9)[None]}, tmp_path / "global.pth")
    assert import_direction(tmp_path / "global.pth", folder, "g", ReleaseDetails(n_steps=40)).info.form == "global"


def test_a_file_that_is_no_direction_is_one_sentence(tmp_path):
    folder = find_model("avatars")
    for content, message in (
        ({"weight": torch.zeros(3, 3, 3)}, "neither delta blocks nor tensors by timestep"),
        ([1, 2], "neither delta blocks nor tensors by timestep"),
        ({"500": torch.zeros(3, 2, 2)}, r"for an h of \(3, 2, 2\)"),
    ):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UserError, match=message):
            import_direction(tmp_path / "x.pth", folder, "x", ReleaseDetails(n_steps=40))
    with pytest.raises(UserError, match="give --n-steps"):
        import_direction(tmp_path / "x.pth", folder, "x", ReleaseDetails())


def test_of_several_blocks_one_is_asked_for(released, wide_models, tmp_path):
    state = torch.load(released["smiling"], weights_only=True, map_location="cpu")["0"]
    torch.save({"0": state, "1": {key: value + 1 for key, value in state.items()}}, tmp_path / "two.pth")
    with pytest.raises(UserError, match="the blocks 0, 1: choose one with --block"):
        import_direction(tmp_path / "two.pth", wide_models["ho"], "x", ReleaseDetails(n_steps=40))
    second = import_direction(tmp_path / "two.pth", wide_models["ho"], "x", ReleaseDetails(n_steps=40), block="1")
    torch.testing.assert_close(second.form.conv2.bias, state["conv2.bias"] + 1)


def test_the_published_intervals_hold():
    """method.md A.9, as computed from the released curves."""
    cosines = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
    expected = {
        "celeba": ((538, 526, 514, 503, 489, 476, 459), 167),
        "church": ((396, 382, 367, 352, 335, 318, 300), 293),
        "bedroom": ((384, 377, 367, 356, 344, 334, 321), 221),
        "afhq": ((482, 462, 439, 412, 383, 346, 310), 167),
        "metface": ((396, 356, 313, 262, 216, 171, 141), 180),
    }
    assert presets.data_sets() == list(expected)
    for name, (t_edits, t_boost) in expected.items():
        assert tuple(presets.t_edit(name, cosine) for cosine in cosines) == t_edits
        assert presets.t_boost(name) == t_boost
    with pytest.raises(UserError, match=r"between 0\.4 and 1"):
        presets.t_edit("celeba", 1.2)


@pytest.mark.parametrize("name", ["celeba", "church", "bedroom", "afhq", "metface"])
def test_the_presets_are_those_of_the_released_curves(name):
    with (OFFICIAL / "lpips" / f"{name}_LPIPS_distance_x0_t.tsv").open() as file:
        curve = [(int(t), float(value)) for t, value in csv.reader(file, delimiter="\t")]
    for percent in range(40, 101):
        threshold = 0.33 * percent / 100
        first = min(t for t, value in curve if value >= threshold)
        assert presets.t_edit(name, percent / 100) == first


def test_the_texts_are_those_of_the_release():
    pairs = json.loads((OFFICIAL / "text_pairs.json").read_text())
    assert {name: presets.texts(name) for name in pairs} == {
        name: (pair["source"], pair["target"]) for name, pair in pairs.items()
    }


def bundled(name: str) -> DirectionInfo:
    return read_info(find_model("avatars").direction_files()[name])


def test_the_official_sum_divides_by_the_root_and_shares_one_interval(tmp_path):
    assert official_sum(parse_edit("a=1,b=-0.5")).weights == (("a", 1 / math.sqrt(2)), ("b", -0.5 / math.sqrt(2)))
    edits = ["smile=1,long_hair=1", "smile=2"]
    ours, official = (
        resolve(spec(SAMPLES, tmp_path, edits=edits, combine=rule)).settings.edits for rule in ("sum", "official")
    )
    smile, long_hair = (info.t_edit for info in map(bundled, ("smile", "long_hair")))
    assert [bound.t_edits for bound in ours] == [(smile, long_hair), (smile,)]
    assert [bound.t_edits for bound in official] == [(long_hair, long_hair), (smile,)]
    assert official[0].edit.weights[0][1] == pytest.approx(1 / math.sqrt(2))
    assert official[1] == ours[1]
