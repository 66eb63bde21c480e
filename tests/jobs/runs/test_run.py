"""What a run would cost, and what it took."""

import json

import pytest

from jobs.runs.run import Cost, summary
from jobs.spec.run import EngineSpec
from pipeline.engine.driver import Outcome
from pipeline.run.progress import RunState


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (Cost(0.2, None), "12.0 device minutes"),
        (Cost(2.5, None), "2.5 device hours"),
        (Cost(1200, 3), "1,200.0 device hours, price 3,600.00"),
        (Cost(2, 0), "2.0 device hours, price 0.00"),
    ],
)
def test_a_cost_is_hours_and_where_there_is_a_rate_a_price(cost, text):
    assert cost.text == text


def test_the_summary_of_a_session_says_how_long_devices_were_held_busy_or_not():
    outcome = Outcome(images=3)
    outcome.seconds.update(device=5400, wait_for_reader=1500, wait_for_writer=300, fetch=9999)
    session = summary(outcome, RunState({}, []), EngineSpec(price_per_hour=1.5))["session"]
    assert (session["device_hours"], session["price"]) == (2.0, 3.0)
    assert summary(outcome, RunState({}, []), EngineSpec())["session"]["price"] is None


def test_a_plan_has_a_price_if_there_is_a_rate(cli, faces, tmp_path):
    flags = ("-s", faces(3), "-o", tmp_path / "out", "-e", "glasses=1", "--n-inv", 3, "--n-gen", 4)
    code, out, err = cli("plan", *flags, "--price-per-hour", 3600, "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["price"] == pytest.approx(3600 * plan["device_hours"]) and plan["price"] > 0
    code, out, err = cli("plan", *flags)
    assert code == 0 and "device minutes" in out and "price" not in out, err
    assert cli("plan", *flags, "--price-per-hour", -1)[0] == 2
