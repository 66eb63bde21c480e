"""Raw checkpoints to diffusers nets: the official tensors, other configurations, and every way of being wrong."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from asyrp.diffusion.process import predict
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.errors import UserError
from asyrp.models.checkpoint import Checkpoint, read_checkpoint
from asyrp.models.convert import convert, write_folder
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from tests.support.official import read_config, read_tensors, write_unet
from tests.support.reference_nets import AdmNet, HoNet, randomised
from tests.support.runs import asyrp

TOLERANCE = 2e-5


def checkpoint(net: torch.nn.Module) -> Checkpoint:
    return Checkpoint("net.pt", net.state_dict(), ())


def difference(unet: UNet2DModel, net: torch.nn.Module, size: int) -> float:
    """The largest relative difference of eps and h from the reference net's, at a low and a high timestep."""
    split, x = HSpaceUNet(unet), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    worst = 0.0
    with torch.inference_mode():
        for t in (7, 801):
            eps, h = net(x, t)
            pairs = ((predict(split, x, t), eps), (split.encode(x, t).h, h))
            worst = max(worst, *(((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs))
    return worst


multipliers = st.sampled_from([(1,), (1, 2), (1, 1, 2), (1, 2, 3), (1, 3, 2), (1, 2, 2, 4)])


@settings(max_examples=12, deadline=None)
@given(multipliers, st.integers(1, 3), st.sets(st.integers(0, 3)), st.integers(0, 9))
def test_any_ho_net_converts_to_the_same_function(mult, blocks, attention, seed):
    net = randomised(HoNet(32, mult, blocks, tuple(sorted(a for a in attention if a < len(mult)))), seed)
    size = 2 ** (len(mult) + 1)
    assert difference(convert(checkpoint(net), size).unet, net, size) < TOLERANCE


@settings(max_examples=20, deadline=None)
@given(
    multipliers,
    st.integers(1, 3),
    st.sets(st.integers(0, 3)),
    st.sampled_from([8, 16, 32]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
def test_any_adm_net_converts_to_the_same_function(
    mult, blocks, attention, width, updown, scale_shift, new_order, seed
):
    levels = tuple(sorted(a for a in attention if a < len(mult)))
    net = randomised(AdmNet(32, mult, blocks, levels, width, updown, scale_shift, new_order), seed)
    size = 2 ** (len(mult) + 1)
    unet = convert(checkpoint(net), size, head_channels=width, new_attention_order=new_order).unet
    assert difference(unet, net, size) < TOLERANCE


def test_heads_can_be_given_by_their_number():
    net = randomised(AdmNet(32, (1, 2), 1, (1,), 16), 0)
    assert difference(convert(checkpoint(net), 16, heads=4).unet, net, 16) < TOLERANCE
    with pytest.raises(UserError, match="different widths, which UNet2DModel cannot express"):
        convert(checkpoint(AdmNet(32, (1, 2), 1, (0, 1), 16)), 16, heads=4)
    with pytest.raises(UserError, match="do not divide"):
        convert(checkpoint(net), 16, head_channels=48)


WRONG_KNOBS = {
    "ho": [
        {"downsample_padding": 1},
        {"freq_shift": 0},
        {"flip_sin_to_cos": True},
        {"attention_head_dim": 8},
        {"norm_eps": 1e-5},
    ],
    "iddpm": [
        {"freq_shift": 1},
        {"flip_sin_to_cos": False},
        {"attention_head_dim": 16},
        {"norm_eps": 1e-6},
    ],
    "adm": [
        {"freq_shift": 1},
        {"flip_sin_to_cos": False},
        {"attention_head_dim": 64},
        {"norm_eps": 1e-6},
    ],
}


def golden_unet(family: str, folder: Path) -> UNet2DModel:
    config = read_config(family)
    found = read_checkpoint(write_unet(family, folder))
    return convert(found, config["image_size"], config["num_head_channels"]).unet


def golden_error(unet: UNet2DModel, family: str) -> float:
    tensors = read_tensors(family)
    with torch.inference_mode():
        ours = predict(HSpaceUNet(unet), tensors["x0"], 499)
    return ((ours - tensors["eps.t499"]).norm() / tensors["eps.t499"].norm()).item()


@pytest.mark.parametrize(("family", "knob"), [(f, knob) for f, knobs in WRONG_KNOBS.items() for knob in knobs])
def test_every_wrong_knob_shows_on_the_golden_tensors(family, knob, tmp_path):
    right = golden_unet(family, tmp_path)
    wrong = UNet2DModel.from_config({**right.config, **knob})
    wrong.load_state_dict(right.state_dict())
    assert golden_error(right, family) < 3e-6
    assert golden_error(wrong.eval(), family) > 6e-6


@pytest.mark.parametrize("family", ["iddpm", "adm"])
def test_without_the_groups_of_the_mid_attention_nothing_loads(family, tmp_path):
    right = golden_unet(family, tmp_path)
    wrong = UNet2DModel.from_config({**right.config, "attn_norm_num_groups": None})
    with pytest.raises(RuntimeError, match=r"mid_block\.attentions\.0\.group_norm"):
        wrong.load_state_dict(right.state_dict())


SMALL = {"base": 32, "mult": (1, 2), "blocks": 1, "attention": (1,)}


@pytest.fixture
def ho():
    return randomised(HoNet(**SMALL), 1)


def wrapped(state: dict) -> dict[str, object]:
    other = {key: value + 1 for key, value in state.items()}
    optimiser = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "plain": OrderedDict(state),
        "module": {f"module.{key}": value for key, value in state.items()},
        "model.module": {"state_dict": {f"model.module.{key}": value for key, value in state.items()}},
        "ema beside model": {"model": other, "optimizer": optimiser, "ema": state, "step": 7},
        "ema within": {
            **{f"model.{k}": v for k, v in other.items()},
            **{f"model_ema.{k}": v for k, v in state.items()},
        },
        "list of a trainer": [other, optimiser, 3, 500, {f"module.{key}": value for key, value in state.items()}],
        "half precision": {key: value.bfloat16() for key, value in state.items()},
    }


@pytest.mark.parametrize("how", list(wrapped({})))
def test_a_net_is_found_in_whatever_a_trainer_wrapped_it(ho, how, tmp_path):
    torch.save(wrapped(ho.state_dict())[how], tmp_path / "net.pt")
    found = read_checkpoint(tmp_path / "net.pt")
    assert found.state.keys() == ho.state_dict().keys()
    unet = convert(found, 16).unet
    assert unet.dtype == torch.float32
    assert difference(unet, ho, 16) < (0.05 if how == "half precision" else TOLERANCE)


def test_what_was_taken_of_several_nets_is_said(ho, tmp_path):
    torch.save(wrapped(ho.state_dict())["ema beside model"], tmp_path / "net.pt")
    assert read_checkpoint(tmp_path / "net.pt").notes == ("took the net 'ema' and left 'model'",)


def test_a_label_embedding_is_dropped_and_said():
    net = randomised(AdmNet(**SMALL, head_channels=16), 0)
    labelled = Checkpoint("net.pt", net.state_dict() | {"label_emb.weight": torch.zeros(10, 128)}, ())
    converted = convert(labelled, 16, 16)
    assert any("label embedding" in note for note in converted.notes)
    assert difference(converted.unet, net, 16) < TOLERANCE


def without(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


BROKEN = {
    "missing": (lambda s: without(s, "down.1.attn.0.k.weight"), r"1 missing \(down_blocks\.1\.attentions\.0\.to_k"),
    "left over": (lambda s: s | {"extra.weight": torch.zeros(1)}, r"1 left over \(extra\.weight\)"),
    "other shape": (lambda s: s | {"norm_out.bias": torch.zeros(7)}, r"1 of another shape \(conv_norm_out\.bias"),
    "no embedding": (lambda s: without(s, "temb.dense.0.weight"), r"it has no temb\.dense\.0\.weight"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_state_dict_that_does_not_fit_exactly_is_refused(ho, how):
    change, message = BROKEN[how]
    with pytest.raises(UserError, match=message) as error:
        convert(Checkpoint("net.pt", change(ho.state_dict()), ()), 16)
    assert "\n" not in str(error.value)


def test_a_tensor_that_no_adm_net_has_is_refused():
    state = AdmNet(**SMALL, head_channels=16).state_dict() | {"extra.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"no iDDPM/ADM U-Net has: extra\.weight"):
        convert(Checkpoint("net.pt", state, ()), 16, 16)


@pytest.mark.parametrize("net", [HoNet(32, (2, 2), 1, ()), AdmNet(32, (2, 2), 1, (), 32)])
def test_a_first_level_that_diffusers_cannot_express_is_refused(net):
    with pytest.raises(UserError, match="UNet2DModel expresses only nets"):
        convert(checkpoint(net), 16, 32)


def test_what_a_state_dict_does_not_say_is_asked_for(ho):
    with pytest.raises(UserError, match=r"image size .* give --image-size"):
        convert(checkpoint(ho))
    with pytest.raises(UserError, match=r"attention heads.* give --num-head-channels or --num-heads"):
        convert(checkpoint(AdmNet(**SMALL, head_channels=16)), 16)
    with pytest.raises(UserError, match=r"image size 15: .* multiples of 2"):
        convert(checkpoint(ho), 15)


def test_the_nets_of_the_papers_ask_for_nothing():
    with torch.device("meta"):
        nets = [
            HoNet(128, (1, 1, 2, 2, 4, 4), 2, (4,)),
            AdmNet(128, (1, 1, 2, 2, 4, 4), 1, (4,), 64),
            AdmNet(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 64),
        ]
    for net, parameters in zip(nets, (113_673_219, 93_563_910, 552_814_086), strict=True):
        converted = convert(checkpoint(net))
        assert converted.unet.config.sample_size == 256
        assert sum(p.numel() for p in converted.unet.parameters()) == parameters


UNREADABLE = {
    "text": (lambda path: path.write_text("hello"), "no checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "no checkpoint"),
    "code": (lambda path: torch.save({"x": pytest.raises}, path), "could run code"),
    "no net": (lambda path: torch.save({"a.weight": torch.zeros(1)}, path), "no U-Net of a known family"),
    "latent": (
        lambda path: torch.save({"cond_stage_model.w": torch.zeros(1)}, path),
        "text-conditional or latent diffusion model; supported are",
    ),
}


@pytest.mark.parametrize("how", UNREADABLE)
def test_a_file_that_is_no_checkpoint_is_one_sentence(how, tmp_path):
    write, message = UNREADABLE[how]
    write(tmp_path / "net.pt")
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(tmp_path / "net.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_checkpoint_is_one_sentence(ho, suffix, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / f"net.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(dict(ho.state_dict()), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut short"):
        read_checkpoint(path)


def test_the_written_folder_opens_with_diffusers_and_keeps_its_digest(ho, tmp_path):
    write_folder(convert(checkpoint(ho), 16), tmp_path / "m", "net.pt")
    assert difference(UNet2DModel.from_pretrained(tmp_path / "m"), ho, 16) < TOLERANCE
    folder = find_model(str(tmp_path / "m"))
    assert folder.digest == folder.record.weights_digest
    assert (folder.family, folder.image_size, folder.h_shape) == ("ho", 16, (64, 8, 8))
    assert len(load_model(folder).schedule) == 1000


@pytest.mark.usefixtures("own_cache")
def test_convert_show_and_the_same_file_named_directly(tmp_path):
    net = randomised(HoNet(128, (1, 2, 2, 2), 2, (1,)), 0)  # the layout of DDPM's CIFAR-10 net, so nothing is asked
    torch.save(net.state_dict(), tmp_path / "net.ckpt")
    done = asyrp("models", "convert", tmp_path / "net.ckpt", "-o", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert "the image size is that of DDPM (CIFAR-10)" in done.stderr
    shown = [json.loads(asyrp("models", "show", tmp_path / name, "--json").stdout) for name in ("m", "net.ckpt")]
    assert shown[0]["family"] == "DDPM++ (Ho)"
    assert shown[0]["h"] == [256, 4, 4]
    assert shown[0]["digest"] == shown[1]["digest"]
    again = asyrp("models", "convert", tmp_path / "net.ckpt", "-o", tmp_path / "m")
    assert again.returncode == 2
    assert "there already" in again.stderr
