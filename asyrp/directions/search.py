"""The smallest strength that passes, for many images at once. No torch here.

`attempt` takes up to `slots` pairs of image and strength, as two lists, and says what came of each; `passes` whether
that will do. Every image is given what came of the strength that was found for it; one that never passed is given
what came of the strongest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
Attempt = Callable[[Sequence[int], Sequence[float]], Sequence[Result]]
Passes = Callable[[Result], bool]


@dataclass(frozen=True)
class Ladder:
    """Strengths in ascending order, tried one after the other."""

    strengths: tuple[float, ...]

    @property
    def most_attempts(self) -> int:
        return len(self.strengths)

    def find(
        self, images: Sequence[int], slots: int, attempt: Attempt[Result], passes: Passes[Result]
    ) -> dict[int, tuple[float, Result]]:
        """As few calls of `attempt` as there are rungs, or fewer: as images pass, those that are left get the freed
        slots for their next rungs too."""
        found: dict[int, tuple[float, Result]] = {}
        climbing, rung = list(images), 0
        while climbing and rung < len(self.strengths):
            rungs = self.strengths[rung : rung + max(1, slots // len(climbing))]
            tried = [(image, strength) for image in climbing for strength in rungs]
            for start in range(0, len(tried), slots):
                some = tried[start : start + slots]
                results = attempt([image for image, _ in some], [strength for _, strength in some])
                for (image, strength), result in zip(some, results, strict=True):
                    if image not in found or not passes(found[image][1]):
                        found[image] = (strength, result)
            climbing, rung = [image for image in climbing if not passes(found[image][1])], rung + len(rungs)
        return found


@dataclass(frozen=True)
class Bisection:
    """Halves of the interval between `low`, which is not tried, and `high`; what passes is taken to pass from some
    strength up to `high`. `steps` halvings."""

    low: float
    high: float
    steps: int

    @property
    def most_attempts(self) -> int:
        return self.steps + 1

    def find(
        self, images: Sequence[int], slots: int, attempt: Attempt[Result], passes: Passes[Result]
    ) -> dict[int, tuple[float, Result]]:
        """`steps` + 1 attempts for every image that passes at `high`, one for the others."""
        found: dict[int, tuple[float, Result]] = {}
        for image, result in self._all(images, [self.high] * len(images), slots, attempt):
            found[image] = (self.high, result)
        halving = [image for image in images if passes(found[image][1])]
        low = dict.fromkeys(halving, self.low)
        for _ in range(self.steps):
            middle = {image: (low[image] + found[image][0]) / 2 for image in halving}
            for image, result in self._all(halving, [middle[image] for image in halving], slots, attempt):
                if passes(result):
                    found[image] = (middle[image], result)
                else:
                    low[image] = middle[image]
        return found

    @staticmethod
    def _all(
        images: Sequence[int], strengths: Sequence[float], slots: int, attempt: Attempt[Result]
    ) -> list[tuple[int, Result]]:
        results: list[Result] = []
        for start in range(0, len(images), slots):
            results += attempt(images[start : start + slots], strengths[start : start + slots])
        return list(zip(images, results, strict=True))


Search = Ladder | Bisection
