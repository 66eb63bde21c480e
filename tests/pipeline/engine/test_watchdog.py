"""A run waits for nothing in silence, and for nothing that cannot come. Actors and cluster are stand-ins here."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from asyrp.errors import MachineError
from pipeline.engine import watchdog
from pipeline.engine.actors import Clock
from pipeline.engine.watchdog import Watchdog


@dataclass
class StandIn:
    """The actors of a run on a cluster that answers and has a node for them, until somebody says otherwise."""

    may_grow: bool = False
    answers: int = 0
    own_node: bool = True
    room: bool = True
    silent: bool = False
    alive: list[Any] = field(default_factory=list)
    needs: dict[str, float] = field(default_factory=lambda: {"GPU": 1.0, "CPU": 2.0})

    def __post_init__(self) -> None:
        self.clock = SimpleNamespace(now=0.0)
        self.options = SimpleNamespace(may_grow=self.may_grow)
        self.cluster = SimpleNamespace(answers=0, has_own_node=lambda: self.own_node, can_hold=lambda _: self.room)
        self.dog = Watchdog(self)  # type: ignore[arg-type]

    def actor(self, placed: float | None = None, started: bool = False, answers: bool = True) -> Any:
        actor = SimpleNamespace(since=self.clock.now, placed=placed, started=started, answered=0.0, answers=answers)
        self.alive.append(actor)
        return actor

    def pass_time(self, seconds: float) -> list[Any]:
        """Look every second; the actors that stand still at the end."""
        stuck: list[Any] = []
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.cluster.answers += not self.silent
            for actor in self.alive:
                actor.answered = self.clock.now if actor.answers else actor.answered
            stuck = self.dog.look()
        return stuck


def test_a_cluster_that_does_not_answer_ends_the_run():
    run = StandIn()
    run.actor(placed=0, started=True)
    assert run.pass_time(1000) == []
    run.silent = True
    with pytest.raises(MachineError, match="has not answered for 40 s"):
        run.pass_time(watchdog.LOST_SECONDS + 2)


def test_a_cluster_whose_node_of_this_machine_is_gone_ends_the_run_at_once():
    run = StandIn()
    run.own_node = False
    with pytest.raises(MachineError, match="the Ray node of this machine is gone"):
        run.pass_time(1)


@pytest.mark.parametrize("started", [False, True])
def test_an_actor_whose_process_does_not_answer_is_replaced_whatever_it_does(started):
    run = StandIn()
    good, frozen = run.actor(placed=0, started=True), run.actor(placed=0, started=started, answers=False)
    [(actor, reason)] = run.pass_time(watchdog.FROZEN_SECONDS + 1)
    assert actor is frozen and actor is not good and "has not answered" in reason


def test_an_actor_that_loads_for_ever_is_replaced():
    run = StandIn()
    actor = run.actor(placed=0)
    assert run.pass_time(watchdog.START_SECONDS) == []
    [(stuck, reason)] = run.pass_time(1)
    assert stuck is actor and "not loaded its net within 30 min" in reason


def test_a_process_that_does_not_begin_is_replaced_where_no_node_can_be_waited_for():
    run, growing = StandIn(), StandIn(may_grow=True)
    for each in (run, growing):
        each.actor()
    assert run.pass_time(watchdog.BEGIN_SECONDS + 1) != []
    assert growing.pass_time(watchdog.BEGIN_SECONDS + 1) == []


def test_the_next_process_has_twice_as_long():
    run = StandIn()
    run.actor()
    run.pass_time(watchdog.BEGIN_SECONDS)
    assert run.pass_time(1) != []
    run.alive.clear()
    run.actor()
    assert run.pass_time(2 * watchdog.BEGIN_SECONDS) == [] and run.pass_time(1) != []


def test_a_run_that_waits_says_for_what_every_half_minute(caplog):
    run = StandIn(may_grow=True)
    run.actor()
    run.actor()
    run.pass_time(240)
    assert len(caplog.messages) == 8
    assert caplog.messages[0] == "2 actors wait for a node with 1 free GPU and 2 free CPUs: 30 s"
    assert caplog.messages[-1].endswith(": 4 min")


def test_no_node_that_could_hold_an_actor_ends_a_run_in_which_nobody_works():
    run = StandIn(may_grow=True, room=False)
    run.actor()
    with pytest.raises(MachineError, match="no node with 1 free GPU and 2 free CPUs has come to the cluster in 15 min"):
        run.pass_time(watchdog.NODE_SECONDS + 2)


def test_a_run_waits_for_nodes_while_somebody_works_and_for_nodes_that_others_use():
    working = StandIn(may_grow=True, room=False)
    working.actor(placed=0, started=True)
    queued = StandIn(may_grow=True, room=True)
    for each in (working, queued):
        each.actor()
        assert each.pass_time(10 * watchdog.NODE_SECONDS) == []


def test_the_clock_of_a_driver_stands_still_with_it(monkeypatch):
    now = 100.0
    monkeypatch.setattr("pipeline.engine.actors.time.monotonic", lambda: now)
    clock = Clock()
    for step in (0.5, 3600.0, 0.5):  # a laptop that slept for an hour
        now += step
        clock.tick()
    assert clock.now == 6.0
