"""Watches what a run waits for: the cluster, nodes for its actors, and processes that stand still.

Nothing that a run waits for may keep it waiting in silence. Either it goes on by itself, or somebody waits for a node
and says so, or the run ends with a sentence.
"""

import logging
from collections.abc import Iterator

from asyrp.errors import MachineError
from pipeline.engine.actors import Actor, Actors
from pipeline.engine.cluster import LOST_SECONDS

log = logging.getLogger(__name__)

FROZEN_SECONDS, BEGIN_SECONDS = 90.0, 100.0
"""How long the process of an actor may leave a question unanswered, and the first one, while it loads its modules. It
gets twice as long after each one that was given up: a machine with too much to do is slow, not frozen."""

START_SECONDS = 1800.0
"""How long an actor may load its net. Fetching it over a network is part of that."""

NODE_SECONDS = 900.0
"""How long a run waits for a node while no actor works and no node of the cluster could hold one."""

SAY_SECONDS, SAY_BESIDE_WORK_SECONDS = 30.0, 1800.0
"""How often a run says what it waits for, if no actor works, and if some do."""


class Watchdog:
    """Looks at the actors of a run and at their cluster."""

    def __init__(self, actors: Actors) -> None:
        self.actors, self.cluster, self.clock = actors, actors.cluster, actors.clock
        self._answers, self._answered = 0, self.clock.now
        self._hopeful = self._said = self.clock.now
        self._patience = 1

    def look(self) -> list[tuple[Actor, str]]:
        """The actors that stand still, each with what it has failed to do.

        Raises:
            MachineError: if the cluster is gone, or no node comes.
        """
        self._look_at_cluster()
        self._say_what_is_waited_for()
        self._give_up_on_nodes()
        stuck = list(self._stuck())
        self._patience *= 2 if stuck else 1
        return stuck

    def _look_at_cluster(self) -> None:
        now = self.clock.now
        if self.cluster.answers != self._answers:
            self._answers, self._answered = self.cluster.answers, now
        if now - self._answered > LOST_SECONDS:
            raise MachineError(f"the head of the Ray cluster (its GCS) has not answered for {LOST_SECONDS:.0f} s")
        if not self.cluster.has_own_node():
            raise MachineError(
                "the Ray node of this machine is gone (its raylet): something has killed it, perhaps the kernel for "
                "lack of memory"
            )

    def _say_what_is_waited_for(self) -> None:
        now = self.clock.now
        if now - self._said < (SAY_BESIDE_WORK_SECONDS if self._somebody_works() else SAY_SECONDS):
            return
        loading = [actor for actor in self.actors.alive if actor.placed is not None and not actor.started]
        place = f"for a node with {self._wanted()}" if self.actors.options.may_grow else "for its process to begin"
        for waiting, what in ((self._without_node(), place), (loading, "for its net to load")):
            if waiting:
                self._said = now
                longest = now - min(actor.since for actor in waiting)
                count = f"{len(waiting)} actor{'s wait' if len(waiting) > 1 else ' waits'}"
                log.warning("%s %s: %s", count, what, f"{longest:.0f} s" if longest < 60 else f"{longest / 60:.0f} min")

    def _give_up_on_nodes(self) -> None:
        if self._somebody_works() or not self._without_node() or self.cluster.can_hold(self.actors.needs):
            self._hopeful = self.clock.now
        if self.clock.now - self._hopeful > NODE_SECONDS:
            raise MachineError(f"no node with {self._wanted()} has come to the cluster in {NODE_SECONDS / 60:.0f} min")

    def _somebody_works(self) -> bool:
        return any(actor.started for actor in self.actors.alive)

    def _without_node(self) -> list[Actor]:
        return [actor for actor in self.actors.alive if actor.placed is None]

    def _wanted(self) -> str:
        return " and ".join(
            f"{need:g} free {name}{'' if need == 1 else 's'}" for name, need in self.actors.needs.items()
        )

    def _stuck(self) -> Iterator[tuple[Actor, str]]:
        now, begin, frozen = self.clock.now, self._patience * BEGIN_SECONDS, self._patience * FROZEN_SECONDS
        for actor in self.actors.alive:
            if actor.placed is None:
                if not self.actors.options.may_grow and now - actor.since > begin:
                    yield actor, f"its process did not begin within {begin:.0f} s"
            elif now - actor.answered > frozen:
                yield actor, f"its process has not answered for {frozen:.0f} s"
            elif not actor.started and now - actor.placed > START_SECONDS:
                yield actor, f"it has not loaded its net within {START_SECONDS / 60:.0f} min"
