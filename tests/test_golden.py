"""Our steps against tensors that the official implementation computed."""

import pytest
import torch
from official import ho_unet, needs_golden, read_config, read_tensors

from asyrp.direction_info import DirectionInfo
from asyrp.directions import Direction, ImplicitDirection
from asyrp.process import Pairs, boost, edit, invert, predict, split_at_boost
from asyrp.schedule import NoiseSchedule, generation_pairs, inversion_pairs
from asyrp.shift import EditShift
from asyrp.unet import HSpaceUNet

pytestmark = needs_golden
TOLERANCE = 1e-4


def relative_error(ours: torch.Tensor, golden: torch.Tensor) -> float:
    return ((ours - golden).norm() / golden.norm()).item()


class Golden:
    def __init__(self) -> None:
        self.config, self.tensors = read_config("ho"), read_tensors("ho")
        self.unet, self.schedule = HSpaceUNet(ho_unet()), NoiseSchedule.linear()
        self.pairs: Pairs = generation_pairs(self.config["n_gen"], self.config["t_0"])
        state = {key[2:]: value for key, value in read_tensors("ho", "delta_blocks").items()}
        info = DirectionInfo("golden", "implicit", "", n_steps=self.config["n_gen"])
        direction = Direction(info, ImplicitDirection.from_state_dict(state))
        self.shift = EditShift(((direction, 1.0, self.config["t_edit"]),), self.config["n_gen"])


@pytest.fixture(scope="module")
def golden():
    with torch.inference_mode():
        yield Golden()


@pytest.mark.parametrize("t", [0, 25, 499, 999])
def test_the_split_net_predicts_what_the_official_net_predicts(golden, t):
    encoded = golden.unet.encode(golden.tensors["x0"], t)
    assert relative_error(encoded.h, golden.tensors[f"h.t{t}"]) < TOLERANCE
    assert relative_error(predict(golden.unet, golden.tensors["x0"], t), golden.tensors[f"eps.t{t}"]) < TOLERANCE


def test_inversion_matches(golden):
    pairs = inversion_pairs(golden.config["n_inv"], golden.config["t_0"])
    x_T = invert(golden.unet, golden.schedule, golden.tensors["x0"], pairs)
    assert relative_error(x_T, golden.tensors["x_T"]) < TOLERANCE


def test_plain_generation_matches(golden):
    nothing = EditShift((), golden.config["n_gen"])
    recon = edit(golden.unet, golden.schedule, golden.tensors["x_T"], golden.pairs, nothing)
    assert relative_error(recon, golden.tensors["recon"]) < TOLERANCE


def test_an_edit_matches_on_the_way_and_at_the_end(golden):
    x = golden.tensors["x_T"]
    for pair in golden.pairs:
        x = edit(golden.unet, golden.schedule, x, [pair], golden.shift)
        name = f"edit.x_next.t{pair[0]}"
        if name in golden.tensors:
            assert relative_error(x, golden.tensors[name]) < TOLERANCE
    assert relative_error(x, golden.tensors["edit.out"]) < TOLERANCE


def test_boosting_matches_with_the_official_noise(golden):
    above, below = split_at_boost(golden.pairs, golden.config["t_boost"])
    x = edit(golden.unet, golden.schedule, golden.tensors["x_T"], above, golden.shift)
    noise = {t: golden.tensors.get(f"boost.noise.t{t}") for t, _ in below}
    assert all(noise[t] is not None for t in noise)
    x = boost(golden.unet, golden.schedule, x, below, golden.shift, lambda t: noise[t])
    assert relative_error(x, golden.tensors["boost.out"]) < TOLERANCE
