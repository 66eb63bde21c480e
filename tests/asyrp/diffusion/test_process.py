"""The maths of the steps and of the loops over them."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from asyrp.diffusion.process import (
    asyrp_step,
    boost,
    boosting_step,
    ddim_step,
    edit,
    edit_gain,
    inversion_calls,
    invert,
    predict,
    split_at_boost,
    symmetric_step,
)
from asyrp.diffusion.schedule import CLEAN, NoiseSchedule, generation_pairs, inversion_pairs, timesteps
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.directions.edits import parse_edit
from asyrp.directions.forms import Direction, GlobalDirection
from asyrp.directions.info import DirectionInfo
from asyrp.directions.shift import EditShift, make_shift
from asyrp.errors import UserError
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from pipeline.images.codec import decode
from tests.support.nets import small_unet
from tests.support.runs import SAMPLES

SCHEDULE = NoiseSchedule.linear()
levels = st.floats(1e-4, 0.9999)


class Counting:
    """A real split net that counts its passes."""

    def __init__(self) -> None:
        self.net, self.encodes, self.decodes = HSpaceUNet(small_unet()), 0, 0

    def encode(self, x, t):
        self.encodes += 1
        return self.net.encode(x, t)

    def decode(self, encoded, h):
        self.decodes += 1
        return self.net.decode(encoded, h)


def shift_of(strength: float, t_edit: int, n_steps: int = 10) -> EditShift:
    torch.manual_seed(1)
    info = DirectionInfo("random", "global", "", n_steps=10)
    return EditShift(((Direction(info, GlobalDirection(torch.randn(32, 8, 8))), strength, t_edit),), n_steps)


def three_images() -> list[torch.Tensor]:
    return list(torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(2)))


def test_the_timesteps_are_the_official_ones():
    assert timesteps(40)[:8] == [0, 25, 51, 76, 102, 128, 153, 179]
    assert timesteps(40)[-3:] == [947, 973, 999]
    assert timesteps(50)[:6] == [0, 20, 40, 61, 81, 101]
    assert timesteps(1000) == list(range(1000))


def test_the_linear_schedule_has_the_official_levels():
    for t, level in {0: 0.9999, 25: 0.990965, 500: 0.0777967, 980: 5.90375e-5, 999: 4.03583e-5}.items():
        assert SCHEDULE.level(t) == pytest.approx(level, rel=1e-5)
    assert SCHEDULE.level(CLEAN) == 1.0


@given(n=st.integers(2, 1000), t_0=st.integers(1, 999))
def test_inversion_climbs_n_minus_1_steps_and_generation_descends_n(n, t_0):
    if n > t_0 + 1:
        with pytest.raises(ValueError, match="steps fit"):
            timesteps(n, t_0)
        return
    up, down = inversion_pairs(n, t_0), generation_pairs(n, t_0)
    assert len(up) == n - 1 and up[0][0] == 0 and up[-1][1] == t_0
    assert len(down) == n and down[0][0] == t_0 and down[-1][1] == CLEAN
    assert all(a < b for a, b in up) and all(a > b for a, b in down)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(down))


@given(a=levels, a_next=levels)
def test_an_asyrp_step_is_the_plain_step_minus_the_gain_times_the_difference(a, a_next):
    x, eps, eps_edit = (image.double() for image in three_images())
    expected = ddim_step(x, eps, a, a_next) - edit_gain(a, a_next) * (eps_edit - eps)
    torch.testing.assert_close(asyrp_step(x, eps, eps_edit, a, a_next), expected)


@given(a=levels, a_next=levels)
def test_a_ddim_step_is_undone_by_the_step_back(a, a_next):
    x, eps, _ = (image.double() for image in three_images())
    there = ddim_step(x, eps, a, a_next)
    torch.testing.assert_close(ddim_step(there, eps, a_next, a), x, rtol=1e-6, atol=1e-6)


@given(data=st.data())
def test_a_symmetric_step_moves_less_than_an_asymmetric_one(data):
    a = data.draw(st.floats(1e-4, 0.99))
    a_next = data.draw(st.floats(a * 1.001, 0.9999))
    x, eps, eps_edit = (image.double() for image in three_images())
    plain = ddim_step(x, eps, a, a_next)
    asymmetric = (asyrp_step(x, eps, eps_edit, a, a_next) - plain).norm()
    assert (symmetric_step(x, eps, eps_edit, a, a_next) - plain).norm() < asymmetric


def test_the_last_boosting_step_adds_no_noise():
    x, eps, noise = three_images()
    torch.testing.assert_close(boosting_step(x, eps, noise, 0.9999, 1.0), ddim_step(x, eps, 0.9999, 1.0))


@given(a=levels, a_next=levels)
def test_boosting_keeps_the_variance_of_the_noise(a, a_next):
    if a_next <= a:
        return
    x, eps, noise = torch.zeros(1), torch.ones(1), torch.zeros(1)
    deterministic = boosting_step(x, eps, noise, a, a_next) - ddim_step(x, eps, a, a_next)
    full = (1 - a_next) ** 0.5
    kept = deterministic + full  # the coefficient left on eps
    sigma = boosting_step(x, eps, torch.ones(1), a, a_next) - boosting_step(x, eps, noise, a, a_next)
    torch.testing.assert_close(kept**2 + sigma**2, torch.tensor([1 - a_next], dtype=kept.dtype), rtol=1e-3, atol=1e-5)


def test_the_split_net_is_the_net():
    unet = small_unet()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(predict(HSpaceUNet(unet), x, 321), unet(x, 321).sample)


def test_the_variance_half_of_a_learned_sigma_net_is_dropped():
    unet = small_unet(out_channels=6)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(predict(HSpaceUNet(unet), x, 5), unet(x, 5).sample[:, :3])


def test_a_class_conditional_net_is_refused():
    unet = UNet2DModel(sample_size=16, block_out_channels=(32,), down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",), num_class_embeds=4)  # fmt: skip
    with pytest.raises(UserError, match="class-conditional"):
        HSpaceUNet(unet)


def test_the_net_is_frozen_and_used_in_place():
    unet = small_unet()
    split = HSpaceUNet(unet)
    assert split.unet is unet and not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert not any(module._forward_hooks for module in unet.modules())


@settings(max_examples=5, deadline=None)
@given(t_edit=st.integers(0, 999))
def test_strength_0_is_bit_equal_to_plain_ddim(t_edit):
    net, pairs = HSpaceUNet(small_unet()), generation_pairs(10)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        plain = edit(net, SCHEDULE, x, pairs, EditShift((), 10))
        assert torch.equal(edit(net, SCHEDULE, x, pairs, shift_of(0.0, t_edit)), plain)


@settings(max_examples=8, deadline=None)
@given(n=st.integers(2, 12), t_edit=st.integers(0, 1000))
def test_a_step_costs_one_encode_and_a_second_decode_only_inside_the_interval(n, t_edit):
    net, pairs = Counting(), generation_pairs(n)
    with torch.inference_mode():
        edit(net, SCHEDULE, torch.randn(1, 3, 16, 16), pairs, shift_of(1.0, t_edit))
    assert net.encodes == n
    assert net.decodes == n + sum(t >= t_edit for t, _ in pairs)


@pytest.mark.parametrize("refine", [0, 1, 3])
def test_inversion_costs_what_it_says(refine):
    net = Counting()
    with torch.inference_mode():
        invert(net, SCHEDULE, torch.randn(1, 3, 16, 16), inversion_pairs(10), refine)
    assert (net.encodes, net.decodes) == (inversion_calls(10, refine),) * 2
    assert inversion_calls(10, 0) == 9


def test_a_refined_inversion_reconstructs_real_images_much_closer():
    model = load_model(find_model("avatars"))
    faces = [decode(path.read_bytes(), 32, "crop").pixels for path in sorted(SAMPLES.glob("*.png"))[:4]]
    x_0, errors = torch.from_numpy(np.stack(faces)), {}
    with torch.inference_mode():
        for refine in (0, 2):
            x_T = invert(model.unet, model.schedule, x_0, inversion_pairs(20), refine)
            back = edit(model.unet, model.schedule, x_T, generation_pairs(20), EditShift((), 20))
            errors[refine] = (back - x_0).abs().mean().item()
    assert errors[2] < 0.5 * errors[0]


def test_boosting_starts_strictly_below_t_boost():
    above, below = split_at_boost([(20, 10), (10, 5), (5, CLEAN)], t_boost=10)
    assert above == [(20, 10), (10, 5)] and below == [(5, CLEAN)]


def test_an_interval_that_reaches_below_t_boost_still_edits_there():
    net, pairs = HSpaceUNet(small_unet()), [(100, 50), (50, CLEAN)]
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        results = [
            boost(net, SCHEDULE, x, pairs, shift_of(strength, 0), lambda t: torch.zeros_like(x))  # noqa: ARG005
            for strength in (0.0, 5.0)
        ]
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_delta_h_is_scaled_to_the_number_of_steps():
    net = HSpaceUNet(small_unet())
    encoded = net.encode(torch.randn(1, 3, 16, 16), 999)
    at_10, at_40 = (shift_of(1.0, 0, n)(encoded, 999) for n in (10, 40))
    torch.testing.assert_close(at_40, at_10 / 4)


def test_in_a_sum_each_direction_acts_in_its_own_interval():
    ones = Direction(DirectionInfo("a", "global", "", 10, t_edit=500), GlobalDirection(torch.ones(32, 8, 8)))
    twos = Direction(DirectionInfo("b", "global", "", 10, t_edit=300), GlobalDirection(2 * torch.ones(32, 8, 8)))
    shift = make_shift(parse_edit("a=1,b=-0.5"), {"a": ones, "b": twos}, 10)
    encoded = HSpaceUNet(small_unet()).encode(torch.randn(1, 3, 16, 16), 999)
    assert shift.t_edit == 300
    assert shift(encoded, 600).unique().tolist() == [0.0]
    assert shift(encoded, 400).unique().tolist() == [-1.0]
    assert shift(encoded, 299) is None


def test_a_direction_acts_from_where_it_begins():
    info = DirectionInfo("a", "global", "", 10, t_edit=300, t_start=500)
    late = Direction(info, GlobalDirection(torch.ones(32, 8, 8)))
    shift = make_shift(parse_edit("a=1"), {"a": late}, 10)
    encoded = HSpaceUNet(small_unet()).encode(torch.randn(1, 3, 16, 16), 999)
    assert [t for t in (501, 500, 300, 299) if shift(encoded, t) is not None] == [500, 300]
