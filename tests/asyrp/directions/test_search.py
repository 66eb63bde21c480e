"""The smallest strength that passes, image by image."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from asyrp.directions.search import Bisection, Ladder

RUNGS = (0.5, 0.75, 1.0, 1.5, 2.0)
thresholds = st.lists(st.floats(0.1, 3), min_size=1, max_size=12)


@dataclass
class Edits:
    """Images that pass from a strength of their own on; counts what is tried."""

    thresholds: list[float]
    slots: int
    calls: int = 0
    tried: int = 0

    def attempt(self, images, strengths):
        assert 0 < len(images) == len(strengths) <= self.slots
        self.calls += 1
        self.tried += len(images)
        return [(image, strength) for image, strength in zip(images, strengths, strict=True)]

    def passes(self, result):
        image, strength = result
        return strength >= self.thresholds[image]

    def find(self, search):
        return search.find(range(len(self.thresholds)), self.slots, self.attempt, self.passes)


@given(thresholds, st.integers(1, 8))
def test_a_ladder_finds_the_smallest_rung_that_passes_and_else_the_highest(thresholds, slots):
    found = Edits(thresholds, slots).find(Ladder(RUNGS))
    for image, threshold in enumerate(thresholds):
        strength, result = found[image]
        assert strength == next((rung for rung in RUNGS if rung >= threshold), RUNGS[-1])
        assert result == (image, strength)


def test_the_images_that_are_left_fill_the_slots_with_their_next_rungs():
    edits = Edits([0.1] * 7 + [1.9], slots=8)
    edits.find(Ladder(RUNGS))
    assert edits.calls == 2  # all at 0.5, then the last at the four other rungs at once


@given(thresholds, st.integers(1, 8), st.integers(1, 6))
def test_a_bisection_comes_as_near_as_its_halvings_allow(thresholds, slots, steps):
    search = Bisection(0.0, 2.0, steps)
    edits = Edits(thresholds, slots)
    found = edits.find(search)
    for image, threshold in enumerate(thresholds):
        strength, result = found[image]
        assert result == (image, strength)
        if threshold > 2.0:
            assert strength == 2.0
        else:
            assert threshold <= strength <= threshold + 2.0 / 2**steps
    assert edits.tried <= search.most_attempts * len(thresholds)
