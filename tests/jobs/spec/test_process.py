"""Which process a spec stands for, and which specs contradict themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyrp.errors import UserError
from jobs.spec.mistakes import validated
from jobs.spec.process import PRESETS, Process, recorded_process
from jobs.spec.run import RunSpec


def spec(**fields) -> RunSpec:
    return validated(RunSpec, {"source": "a", "output": "b", "edits": ["smile=1"], **fields})


RETRY = {"inspection": {"gates": ["recon_psnr > 30"], "retry": {"refine": 3}}}


@pytest.mark.parametrize(
    ("fields", "process"),
    [
        ({}, Process("dpmpp_2m", 20, 20)),
        ({"preset": "default"}, Process("dpmpp_2m", 20, 20)),
        ({"preset": "fast"}, Process("dpmpp_2m", 14, 14)),
        ({"preset": "paper"}, Process("ddim", 40, 40)),
        ({"solver": "ddim"}, Process("ddim", 40, 40)),
        ({"preset": "fast", "n_inv": 12}, Process("dpmpp_2m", 12, 12)),
        ({"preset": "paper", "n_gen": 20}, Process("ddim", 40, 20)),
        ({"preset": "paper", "refine": 2}, Process("ddim", 40, 40, 2)),
        ({"n_inv": 30}, Process("dpmpp_2m", 30, 30)),
        ({"n_gen": 30}, Process("dpmpp_2m", 30, 30)),
        ({"n_inv": 30, "n_gen": 30}, Process("dpmpp_2m", 30, 30)),
        # What only DDIM has.
        ({"refine": 2}, Process("ddim", 40, 40, 2)),
        ({"n_inv": 3, "n_gen": 4}, Process("ddim", 3, 4)),
        ({"n_inv": 20, "n_gen": 20, "refine": 1}, Process("ddim", 20, 20, 1)),
        (RETRY, Process("ddim", 40, 40)),
    ],
)
def test_a_spec_that_names_no_process_takes_the_usual_one_or_that_of_what_it_asks_for(fields, process):
    assert spec(**fields).process(None) == process


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "dpmpp_2m", "refine": 1}, "refine is for ddim"),
        ({"solver": "dpmpp_2m", "n_inv": 20, "n_gen": 10}, "n_inv and n_gen must be the same"),
        ({"solver": "dpmpp_2m", **RETRY}, "inspection.retry is for ddim"),
        ({"preset": "fast", "refine": 1}, "leave out preset: fast"),
        ({"preset": "default", "n_inv": 20, "n_gen": 10}, "leave out preset: default"),
        ({"preset": "paper", "solver": "dpmpp_2m"}, "preset paper is of ddim: give one of the two"),
        ({"preset": "fast", "solver": "ddim"}, "preset fast is of dpmpp_2m: give one of the two"),
        ({"preset": "quick"}, "'default', 'fast' or 'paper'"),
        ({"solver": "euler"}, "'ddim' or 'dpmpp_2m'"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused_in_one_sentence(fields, message):
    with pytest.raises(UserError, match=message) as refused:
        spec(**fields)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("there", [*PRESETS.values(), Process("ddim", 50, 12, 1)])
def test_a_run_that_is_there_goes_on_with_its_own_process(there):
    recorded = recorded_process(
        {"solver": there.solver, "n_inv": there.n_inv, "n_gen": there.n_gen, "refine": there.refine}
    )
    assert spec().process(recorded) == there
    assert spec(preset="fast").process(recorded) == PRESETS["fast"]


@pytest.mark.parametrize("told", [{}, {"n_inv": 40}, {"n_inv": "x", "n_gen": 4}, {"n_inv": 4, "n_gen": 0}])
def test_a_record_without_a_process_tells_none(told):
    assert recorded_process({"source": "a", "model": "avatars", **told}) is None


def test_a_run_of_before_there_was_a_choice_is_of_ddim():
    assert recorded_process({"n_inv": 40, "n_gen": 20, "refine": 1}) == Process("ddim", 40, 20, 1)


numbers = st.none() | st.integers(2, 1000)


@given(st.none() | st.sampled_from(sorted(PRESETS)), numbers, numbers, st.sampled_from([None, "ddim", "dpmpp_2m"]))
def test_what_is_settled_is_settled_the_same_again(preset, n_inv, n_gen, solver):
    """The spec that run.json records stands for the process that was taken, whatever was left out at first."""
    try:
        first = spec(preset=preset, n_inv=n_inv, n_gen=n_gen, solver=solver).process(None)
    except UserError:
        return
    recorded = spec(solver=first.solver, n_inv=first.n_inv, n_gen=first.n_gen, refine=first.refine)
    assert recorded.process(None) == spec().process(first) == first
