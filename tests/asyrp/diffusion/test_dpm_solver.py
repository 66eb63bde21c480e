"""The second-order solver and its anchored edits, on a net whose predictions are exact."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyrp.diffusion import dpm_solver
from asyrp.diffusion.edit_weights import EditWeights
from asyrp.diffusion.process import ddim_step, predicted_x0
from asyrp.diffusion.schedule import CLEAN, NoiseSchedule, blended_timesteps, generation_pairs, timesteps
from asyrp.diffusion.solvers import DDIM, DPMSolver
from asyrp.directions.edits import parse_edit
from asyrp.directions.forms import Direction, GlobalDirection
from asyrp.directions.info import DirectionInfo
from asyrp.directions.shift import EditShift, MixedShift, make_shift, make_weighted_shift
from tests.support.mixtures import MixtureNet

SCHEDULE = NoiseSchedule.linear()
FINER = 64
FINE = NoiseSchedule.linear(1e-4 / FINER, 0.02 / FINER, 1000 * FINER)
"""The same noise in 64 times as many timesteps, so that steps are not rounded."""


def images(count: int = 4) -> Tensor:
    side = torch.randn(count, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).sign()
    noise = torch.randn(count, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return 0.6 * side + 0.2 * noise


def direction(t_start: int | None = None, n_steps: int = 40, size: float = 0.02) -> Direction:
    info = DirectionInfo("up", "global", "", n_steps=n_steps, t_start=t_start, t_edit=0)
    return Direction(info, GlobalDirection(torch.full((1, 1, 1), size, dtype=torch.float64)))


def up(schedule: NoiseSchedule, strength: float, t_edit: int, t_start: int | None = None, **changes) -> EditShift:
    edit = parse_edit(f"up={strength}")
    return make_weighted_shift(edit, {"up": direction(t_start, **changes)}, schedule, (t_edit,))


def inverted(schedule: NoiseSchedule, n: int, x_0: Tensor) -> tuple[Tensor, list[int]]:
    steps = blended_timesteps(n, schedule)
    return dpm_solver.invert(MixtureNet(schedule), schedule, x_0, steps, dtype=torch.float64), steps


def order(errors: list[float]) -> float:
    """The order of convergence that errors show when the number of steps is doubled each time."""
    return sum(math.log2(a / b) for a, b in pairwise(errors)) / (len(errors) - 1)


def test_the_steps_are_those_that_were_measured():
    found = [0, 4, 16, 40, 79, 132, 193, 259, 328, 398, 466, 534, 599, 662, 722, 781, 838, 893, 947, 999]
    assert blended_timesteps(20, SCHEDULE) == found


schedules = st.one_of(
    st.builds(
        lambda start, ratio, steps: NoiseSchedule.linear(start, min(0.9, start * ratio), steps),
        st.floats(1e-5, 0.01),
        st.floats(1.1, 300),
        st.integers(2, 3000),
    ),
    st.integers(2, 2000).map(NoiseSchedule.cosine),
    st.integers(10, 1000).map(lambda steps: NoiseSchedule.linear(steps=steps).with_zero_terminal_snr()),
)


@settings(deadline=None)
@given(schedules, st.data())
def test_steps_begin_at_0_end_at_T_and_ascend_for_any_schedule(schedule, data):
    last = len(schedule) - 1
    n = data.draw(st.integers(2, last + 1))
    steps = blended_timesteps(n, schedule)
    assert (steps[0], steps[-1], len(steps)) == (0, last, n)
    assert all(a < b for a, b in pairwise(steps))


@pytest.mark.parametrize("n", [1, 1001])
def test_more_steps_than_timesteps_are_refused(n):
    with pytest.raises(ValueError, match="between 2 and 1000 steps"):
        blended_timesteps(n, SCHEDULE)


def test_the_first_move_is_that_of_ddim():
    """DPM-Solver++ of first order is DDIM (Lu et al. 2022, section 4.1)."""
    x, eps = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    snr = SCHEDULE.half_log_snrs().tolist()
    for t, t_next in ((700, 640), (640, 700), (5, 0)):
        a, a_next = SCHEDULE.level(t), SCHEDULE.level(t_next)
        here = dpm_solver.Point(predicted_x0(x, eps, a), snr[t])
        torch.testing.assert_close(dpm_solver.move(x, here, None, snr[t_next]), ddim_step(x, eps, a, a_next))


def test_inversion_and_generation_are_of_second_order():
    x_0 = images()
    finest, steps = inverted(FINE, 2560, x_0)
    top = dpm_solver.latents(FINE, finest, steps)[-1]
    clean = dpm_solver.generate(MixtureNet(FINE), FINE, top, steps)
    upwards, downwards = [], []
    for n in (40, 80, 160, 320):
        inversion, steps = inverted(FINE, n, x_0)
        upwards.append((dpm_solver.latents(FINE, inversion, steps)[-1] - top).abs().mean().item())
        again = dpm_solver.generate(MixtureNet(FINE), FINE, top, steps)
        downwards.append((again - clean).abs().mean().item())
    assert order(upwards) > 1.8, upwards
    assert order(downwards) > 1.8, downwards


@pytest.mark.parametrize(("t_edit", "t_start"), [(500, None), (130, 450)])
def test_an_edit_is_of_second_order(t_edit, t_start):
    shift = up(FINE, 1.0, t_edit * FINER, t_start and t_start * FINER)
    results = []
    for n in (40, 80, 160, 320, 2560):
        inversion, steps = inverted(FINE, n, images())
        results.append(dpm_solver.edit(MixtureNet(FINE), FINE, inversion, steps, shift))
    errors = [(result - results[-1]).abs().mean().item() for result in results[:-1]]
    assert (results[-1] - images()).abs().mean() > 0.01
    assert order(errors) > 1.8, errors


def asyrp_in_many_steps(schedule: NoiseSchedule, x_0: Tensor, t_edit: int, n_ref: int, size: float) -> Tensor:
    """An Asyrp edit in a step for every timestep, each weighing as much as its part of a step of `n_ref`.

    The unedited path is followed beside it and the difference added to the source, as an anchored edit does.
    """
    net, weights = MixtureNet(schedule), EditWeights(schedule, n_ref)
    finest, steps = inverted(schedule, len(schedule), x_0)
    source = dpm_solver.latents(schedule, finest, steps)[-1]
    edited = source
    for t, t_next in dpm_solver.downwards(steps):
        a, a_next = schedule.level(t), schedule.level(t_next)
        nothing = torch.zeros(len(x_0), 1, 1, 1, dtype=torch.float64)
        plain = net.encode(source, t)
        source = ddim_step(source, net.decode(plain, nothing), a, a_next)
        encoded = net.encode(edited, t)
        eps, eps_edit = net.decode(encoded, nothing), net.decode(encoded, nothing + size)
        change = predicted_x0(edited, eps_edit, a) - predicted_x0(edited, eps, a)
        weight = weights.of_move(t, t_next, None, t_edit).value
        edited = ddim_step(edited, eps, a, a_next) + a_next**0.5 * weight * change
    return x_0 + edited - source


def test_an_edit_in_20_steps_is_that_of_1000_asyrp_steps():
    limit = asyrp_in_many_steps(SCHEDULE, images(), 500, 40, 0.02)
    changed = (limit - images()).abs().mean()
    for n, share in ((14, 0.12), (20, 0.08), (40, 0.03)):
        inversion, steps = inverted(SCHEDULE, n, images())
        edited = dpm_solver.edit(MixtureNet(SCHEDULE), SCHEDULE, inversion, steps, up(SCHEDULE, 1.0, 500))
        assert (edited - limit).abs().mean() < share * changed


def test_strength_1_means_the_same_as_in_the_steps_it_was_set_at():
    x_0 = images()
    ddim = DDIM(MixtureNet(SCHEDULE), SCHEDULE, n_inv=1000, n_gen=40)
    papers = make_shift(parse_edit("up=1"), {"up": direction()}, 40, (500,))
    inversion = ddim.invert(x_0)
    wanted = ddim.edit(inversion, papers, 0) - ddim.reconstruct(inversion)
    solver = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, 40)
    edited = solver.edit(inverted(SCHEDULE, 40, x_0)[0], up(SCHEDULE, 1.0, 500), 0) - x_0
    assert edited.mean() == pytest.approx(wanted.mean().item(), rel=0.1)


@given(st.integers(1, 60), st.integers(0, 999), st.none() | st.integers(0, 999), st.integers(2, 400))
@settings(deadline=None, max_examples=50)
def test_weights_of_moves_add_up_whatever_the_steps(n_ref, t_edit, t_start, n):
    """The weight of a whole interval, carried to its end, is the same in moves of any length."""
    weights, ratio = EditWeights(SCHEDULE, n_ref), SCHEDULE.half_log_snrs().exp()
    moves = list(pairwise(reversed(blended_timesteps(n, SCHEDULE))))
    parts = sum(weights.of_move(t, to, t_start, t_edit).value * ratio[to].item() for t, to in moves)
    whole = weights.of_move(999, 0, t_start, t_edit).value * ratio[0].item()
    assert parts == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_a_move_as_long_as_a_step_of_the_unit_weighs_1():
    weights = EditWeights(SCHEDULE, 40)
    for t, t_next in pairwise(reversed(timesteps(40))):
        assert weights.of_move(t, t_next, None, 0).value == pytest.approx(1, abs=0.05)
    assert weights.of_move(0, CLEAN, None, 0) == (1, 0)


@given(n=st.integers(2, 60), t_boost=st.sampled_from([0, 130, 400]))
@settings(deadline=None, max_examples=20)
def test_without_an_edit_the_source_comes_back_and_the_net_is_not_asked(n, t_boost):
    x_0 = images().float()
    solver = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, n)
    inversion = solver.invert(x_0)
    solver.unet.encodes = 0
    found = solver.edit(inversion, EditShift((), 40), t_boost)
    path = dpm_solver.latents(SCHEDULE, inversion, solver.steps)
    assert torch.equal(found, path[0] if not t_boost else path[sum(t < t_boost for t in solver.steps) - 1])
    assert torch.allclose(path[0], x_0, atol=5e-4)
    assert solver.unet.encodes == 0


def test_strength_0_gives_the_source_to_the_rounding_of_the_inversion():
    x_0 = images().float()
    for n in (2, 5, 20):
        solver = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, n)
        shift = up(SCHEDULE, 0.0, 0)
        assert (solver.edit(solver.invert(x_0), shift, 0) - x_0).abs().max() < 2e-3
        exact = dpm_solver.invert(solver.unet, SCHEDULE, x_0, solver.steps, dtype=torch.float32)
        assert (dpm_solver.edit(solver.unet, SCHEDULE, exact, solver.steps, shift) - x_0).abs().max() < 2e-5


@pytest.mark.parametrize("t_start", [None, 800, 450, 30, 0])
def test_an_inversion_that_goes_no_higher_than_the_edit_gives_the_same_bits(t_start):
    x_0, shift = images().float(), up(SCHEDULE, 1.0, 0, t_start)
    whole, part = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, 20), DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, 20, t_start)
    inversion = part.invert(x_0)
    assert torch.equal(part.edit(inversion, shift, 0), whole.edit(whole.invert(x_0), shift, 0))
    assert torch.equal(inversion, whole.invert(x_0)[:, : part.kept])
    assert part.edit(whole.invert(x_0), shift, 0).equal(part.edit(inversion, shift, 0)), "a longer one may be used"


@pytest.mark.parametrize(
    ("t_top", "t_start", "t_boost", "counted"),
    [(None, None, 100, (20, 14)), (450, 450, 100, (11, 5)), (700, 450, 700, (14, 5))],
)
def test_the_evaluations_are_as_many_as_were_counted(t_top, t_start, t_boost, counted):
    solver = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, 20, t_top)
    shift = up(SCHEDULE, 1.0, 200, t_start)
    inversion = solver.invert(images().float())
    assert (solver.unet.encodes, solver.unet.decodes) == (solver.inversion_calls,) * 2
    solver.unet.encodes = solver.unet.decodes = 0
    x = solver.edit(inversion, shift, t_boost)
    solver.boost(x, shift, t_boost, lambda _: torch.zeros_like(x))
    expected = solver.edit_evaluations(shift.acts, t_boost)
    assert (solver.unet.encodes, solver.unet.decodes - solver.unet.encodes) == expected
    assert expected == counted


def test_images_of_a_batch_with_other_edits_and_ends_are_what_they_are_alone():
    x_0 = images(3).float()
    solver = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, 20)
    inversion = solver.invert(x_0)
    shifts = (up(SCHEDULE, 1.0, 300, 600), up(SCHEDULE, -0.5, 500), up(SCHEDULE, 1.0, 100, 250))
    mixed = solver.edit(inversion, MixedShift(shifts, torch.tensor([0, 1, 2])), 0)
    for index, shift in enumerate(shifts):
        assert torch.equal(mixed[index], solver.edit(inversion, shift, 0)[index])
    ends = torch.tensor([300, 520, 777])
    each = solver.edit(inversion, shifts[1].for_images(torch.tensor([1.0, 2.0, 0.5]), (ends,)), 0)
    for index, (end, factor) in enumerate(zip(ends.tolist(), (1.0, 2.0, 0.5), strict=True)):
        alone = solver.edit(inversion, up(SCHEDULE, -0.5 * factor, end), 0)
        torch.testing.assert_close(each[index], alone[index], rtol=0, atol=1e-6)


@given(st.integers(0, 999), st.integers(0, 999), st.integers(2, 60))
@settings(deadline=None, max_examples=50)
def test_an_edit_acts_where_the_steps_of_its_unit_do_that_begin_in_the_interval(t_edit, t_start, n_ref):
    weights = EditWeights(SCHEDULE, n_ref)
    begun = [(t, t_next) for t, t_next in generation_pairs(n_ref) if t_edit <= t <= t_start]
    passed = {each for t, t_next in begun for each in range(t_next + 1, t + 1)}
    assert {t for t in range(1000) if weights.acts(t, t - 1, t_start, t_edit)} == passed


def test_the_size_of_an_edit_does_not_jump_with_the_number_of_steps():
    """Wherever the steps of the solver lie, and where the interval ends between them."""
    x_0 = images().float()
    for t_edit in (130, 300, 477, 500):
        sizes = []
        for n in range(16, 30):
            solver = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, n)
            sizes.append((solver.edit(solver.invert(x_0), up(SCHEDULE, 1.0, t_edit, 700), 0) - x_0).abs().mean().item())
        assert all(abs(b / a - 1) < 0.015 for a, b in pairwise(sizes))


def test_a_sum_of_directions_is_close_to_their_edits_added():
    solver, x_0 = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, 20), images().float()
    inversion, known = solver.invert(x_0), {"a": direction(size=0.002), "b": direction(450, size=0.003)}

    def change(text: str, t_edits: tuple[int, ...]) -> Tensor:
        return solver.edit(inversion, make_weighted_shift(parse_edit(text), known, SCHEDULE, t_edits), 0) - x_0

    both = change("a=1,b=1", (500, 130))
    torch.testing.assert_close(
        both, change("a=1", (500,)) + change("b=1", (130,)), rtol=0, atol=0.05 * both.abs().max()
    )


def test_directions_of_other_numbers_of_steps_keep_their_strength():
    solver, x_0 = DPMSolver(MixtureNet(SCHEDULE), SCHEDULE, 40), images().float()
    inversion = solver.invert(x_0)
    many = solver.edit(inversion, up(SCHEDULE, 1.0, 300, n_steps=80, size=0.01), 0) - x_0
    few = solver.edit(inversion, up(SCHEDULE, 1.0, 300, n_steps=40, size=0.02), 0) - x_0
    torch.testing.assert_close(many, few, rtol=0, atol=0.1 * few.abs().max().item())


def test_a_schedule_whose_levels_end_in_pure_noise_is_edited():
    schedule = NoiseSchedule.linear(steps=4000)  # alpha_bar falls below the smallest level
    solver, x_0 = DPMSolver(MixtureNet(schedule), schedule, 20), images().float()
    edited = solver.edit(solver.invert(x_0), up(schedule, 1.0, 500), 0)
    assert edited.isfinite().all() and (edited - x_0).abs().mean() > 1e-3
