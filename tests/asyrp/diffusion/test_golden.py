"""Our steps against tensors that the official implementation computed."""

from pathlib import Path

import pytest
import torch

from asyrp.diffusion.process import Pairs, boost, edit, invert, predict, split_at_boost
from asyrp.diffusion.schedule import NoiseSchedule, generation_pairs, inversion_pairs
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.directions.forms import Direction, delta_block
from asyrp.directions.info import DirectionInfo
from asyrp.directions.shift import EditShift
from asyrp.models.checkpoint import read_checkpoint
from asyrp.models.convert import convert
from tests.support.official import draw_unet, read_config, read_parameters, read_tensors, write_unet

FAMILIES = ("ho", "iddpm", "adm")
TOLERANCE = 1e-4


def relative_error(ours: torch.Tensor, golden: torch.Tensor) -> float:
    return ((ours - golden).norm() / golden.norm()).item()


class Golden:
    def __init__(self, family: str, folder: Path) -> None:
        self.config, self.tensors = read_config(family), read_tensors(family)
        checkpoint = read_checkpoint(write_unet(family, folder))
        converted = convert(checkpoint, self.config["image_size"], self.config["num_head_channels"])
        self.unet, self.schedule = HSpaceUNet(converted.unet), NoiseSchedule.linear()
        self.pairs: Pairs = generation_pairs(self.config["n_gen"], self.config["t_0"])
        of_h, *coefficients = self.config["hs_coeff"]
        assert of_h == 1
        self.shift = EditShift(
            tuple(
                (block, c, self.config["t_edit"]) for block, c in zip(self.blocks(family), coefficients, strict=True)
            ),
            self.config["n_gen"],
        )

    def blocks(self, family: str) -> list[Direction]:
        state = read_tensors(family, "delta_blocks")
        info = DirectionInfo("golden", "implicit", "", n_steps=self.config["n_gen"])
        numbers = sorted({key.split(".")[0] for key in state})
        states = [{k.removeprefix(f"{n}."): v for k, v in state.items() if k.startswith(f"{n}.")} for n in numbers]
        return [Direction(info, delta_block(block)) for block in states]


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request, tmp_path_factory):
    with torch.inference_mode():
        yield Golden(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_that_the_seed_gives_are_those_of_the_official_run(family):
    """A last value depends on every draw before it, so one parameter too many or too few shows."""
    drawn, official = draw_unet(family), read_parameters(family)
    last = [drawn[name].flatten()[-1].item() for name in official]
    assert last == pytest.approx([parameter["last"] for parameter in official.values()], rel=1e-5)


@pytest.mark.parametrize("t", [0, 25, 499, 999])
def test_the_split_net_predicts_what_the_official_net_predicts(golden, t):
    encoded = golden.unet.encode(golden.tensors["x0"], t)
    assert relative_error(encoded.h, golden.tensors[f"h.t{t}"]) < TOLERANCE
    assert relative_error(predict(golden.unet, golden.tensors["x0"], t), golden.tensors[f"eps.t{t}"]) < TOLERANCE


def test_inversion_matches_as_far_as_float32_determines_it(golden):
    """The trajectory of the random ADM net amplifies a rounding of x_0 ten thousand times: float64 is as far from the
    official float32 result as ours is. What one rounding does is the most that any implementation can promise."""
    pairs = inversion_pairs(golden.config["n_inv"], golden.config["t_0"])
    x_0 = golden.tensors["x0"]
    x_T = invert(golden.unet, golden.schedule, x_0, pairs)
    rounded = x_0 * (1 + 1e-7 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)))
    one_rounding = relative_error(invert(golden.unet, golden.schedule, rounded, pairs), x_T)
    assert one_rounding < 5e-3
    assert relative_error(x_T, golden.tensors["x_T"]) < max(TOLERANCE, 3 * one_rounding)


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
