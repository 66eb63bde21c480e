"""Searches for the smallest strength that passes, for many images at once. No torch here.

`attempt` takes up to `slots` images and as many strengths, and returns the result of each. `passes` says whether a
result is good enough. The search returns for each image the strength that was found, with its result. An image that
never passed gets the strongest strength, with its result.
"""

from collections.abc import Callable, Iterator, Sequence
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
        """The strength found for each image (an index), and its result.

        Images that have passed leave their slots to the others, which use them to try several rungs in one call of
        `attempt`. If all images fit into the slots, there are at most as many calls as rungs.
        """
        found: dict[int, tuple[float, Result]] = {}
        climbing, rung = list(images), 0
        while climbing and rung < len(self.strengths):
            rungs = self.strengths[rung : rung + max(1, slots // len(climbing))]
            tried = [(image, strength) for image in climbing for strength in rungs]
            for image, strength, result in _attempts(tried, slots, attempt):
                if image not in found or not passes(found[image][1]):
                    found[image] = (strength, result)
            climbing, rung = [image for image in climbing if not passes(found[image][1])], rung + len(rungs)
        return found


@dataclass(frozen=True)
class Bisection:
    """`steps` halvings of the interval from `low` to `high`. `low` itself is not tried.

    The search assumes that an image which passes at some strength also passes at all larger ones up to `high`.
    """

    low: float
    high: float
    steps: int

    @property
    def most_attempts(self) -> int:
        return self.steps + 1

    def find(
        self, images: Sequence[int], slots: int, attempt: Attempt[Result], passes: Passes[Result]
    ) -> dict[int, tuple[float, Result]]:
        """The strength found for each image (an index), and its result.

        An image that passes at `high` takes `steps` + 1 attempts, another image takes one.
        """
        found: dict[int, tuple[float, Result]] = {}
        for image, strength, result in _attempts([(image, self.high) for image in images], slots, attempt):
            found[image] = (strength, result)
        halving = [image for image in images if passes(found[image][1])]
        low = dict.fromkeys(halving, self.low)
        for _ in range(self.steps):
            middle = [(image, (low[image] + found[image][0]) / 2) for image in halving]
            for image, strength, result in _attempts(middle, slots, attempt):
                if passes(result):
                    found[image] = (strength, result)
                else:
                    low[image] = strength
        return found


Search = Ladder | Bisection


def _attempts(
    pairs: Sequence[tuple[int, float]], slots: int, attempt: Attempt[Result]
) -> Iterator[tuple[int, float, Result]]:
    """Attempt all pairs of image and strength, `slots` at a time, and give each with its result."""
    for start in range(0, len(pairs), slots):
        images, strengths = zip(*pairs[start : start + slots], strict=True)
        yield from zip(images, strengths, attempt(images, strengths), strict=True)
