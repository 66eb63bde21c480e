"""Draws edits and strengths for an image.

The draws depend only on the image's key, its labels and run.json, not on the order or number of images.

    labels of the source -> census: images by cell -> how often each cell draws each edit -> draws of an image
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, count, takewhile
from typing import Any

from asyrp.directions.edits import Edit
from pipeline.images.selection import Condition
from pipeline.images.source import Draw

Labels = Mapping[str, float]
CellName = tuple[tuple[float, ...], tuple[int, ...]]
"""The values of the labels that are balanced, and the indices of the open options."""

GOLDEN = 0.6180339887498949
"""Its multiples, modulo 1, are spread as evenly as possible."""


@dataclass(frozen=True)
class Uniform:
    """Any strength from `low` to `high`."""

    low: float
    high: float

    def most_distinct(self, draws: int) -> int:
        """The largest number of different strengths among `draws`."""
        return draws

    def strength(self, chance: float, earlier: int) -> float:
        """The strength for an image with `chance` in [0, 1) that has drawn the edit `earlier` times before."""
        return self.low + (chance + earlier * GOLDEN) % 1 * (self.high - self.low)


@dataclass(frozen=True)
class OneOf:
    """Any of the given strengths."""

    strengths: tuple[float, ...]

    def most_distinct(self, draws: int) -> int:
        """The largest number of different strengths among `draws`."""
        return min(draws, len(self.strengths))

    def strength(self, chance: float, earlier: int) -> float:
        """The strength for an image with `chance` in [0, 1) that has drawn the edit `earlier` times before."""
        return self.strengths[(int(chance * len(self.strengths)) + earlier) % len(self.strengths)]


@dataclass(frozen=True)
class Option:
    """An edit that an image may draw if all conditions `where` hold for its labels.

    A drawn strength multiplies that of the edit. `sets` gives the new values of the labels that the edit changes.
    """

    edit: Edit
    strengths: Uniform | OneOf
    weight: float
    where: tuple[Condition, ...]
    sets: Labels

    def is_open_to(self, labels: Labels) -> bool:
        """Whether an image with these labels may draw the edit.

        Raises:
            UserError: if a condition names a label that there is not.
        """
        return all(condition.holds(labels) for condition in self.where)


@dataclass(frozen=True)
class Cell:
    """The images of a source with the same values of the balanced labels (`group`) and the same open `options`.

    `options` are indices. `images` is their number in the source. `draws` says how often, on average, one of them draws
    each of the options.
    """

    group: Labels
    options: tuple[int, ...]
    images: int
    draws: tuple[float, ...] = ()

    @property
    def name(self) -> CellName:
        return tuple(self.group.values()), self.options


@dataclass(frozen=True)
class Census:
    """The facts about a source that a run was planned with.

    They are the names of the source's labels, the labels that each option sets, and the cells of the source. There are
    no cells if nothing is balanced.
    """

    labels: tuple[str, ...]
    sets: tuple[Labels, ...]
    cells: tuple[Cell, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Census":
        """The census from the JSON form of `as_json`, where tuples have become lists."""
        cells = (Cell(c["group"], tuple(c["options"]), c["images"], tuple(c["draws"])) for c in record["cells"])
        return cls(tuple(record["labels"]), tuple(record["sets"]), tuple(cells))


@dataclass(frozen=True)
class Augmentation:
    """Up to `draws` edits for each image, none of them twice at the same strength.

    With `balance`, images draw only the edits that make the groups of these labels equally large. Without it, they draw
    as many open options as they can, by weight.
    """

    options: tuple[Option, ...]
    draws: int
    balance: tuple[str, ...]
    seed: int

    def cell_of(self, labels: Labels) -> CellName:
        """The cell of an image with these labels."""
        open_to = tuple(index for index, option in enumerate(self.options) if option.is_open_to(labels))
        return tuple(labels[name] for name in self.balance), open_to

    def cells(self, labels_of_images: Iterable[Labels]) -> list[Cell]:
        """The cells of all images of a source, in a fixed order and without draws."""
        counts = Counter(self.cell_of(labels) for labels in labels_of_images)
        return [
            Cell(dict(zip(self.balance, values, strict=True)), options, counts[values, options])
            for values, options in sorted(counts)
        ]

    def most_draws(self, options: Sequence[int]) -> list[float]:
        """How often one image can draw each of the options at most."""
        return [self.options[index].strengths.most_distinct(self.draws) for index in options]

    def split_by_weight(self, options: Sequence[int], total: float) -> list[float]:
        """`total` draws of one image, divided among options by their weights, up to the most draws of each."""
        return share_out([self.options[index].weight for index in options], self.most_draws(options), total)


@dataclass(frozen=True)
class Drawing:
    """An augmentation together with the census that it was planned with."""

    augmentation: Augmentation
    census: Census

    def draws_of(self, key: str, labels: Labels) -> tuple[Draw, ...]:
        """The edits that an image draws. With balanced groups it draws none if its cell is not in the census."""
        rules = self.augmentation
        group, options = rules.cell_of(labels)
        if rules.balance:
            expected: Sequence[float] = self._draws_of_cells.get((group, options), ())
        else:
            expected = rules.split_by_weight(options, rules.draws)
        draws, earlier = [], Counter[int]()
        for place in systematic_sample(expected, chance_of(rules.seed, key, "edits")):
            index = options[place]
            option, chance = rules.options[index], chance_of(rules.seed, key, f"strength {index}")
            strength = option.strengths.strength(chance, earlier[place])
            draws.append(Draw(option.edit.name, option.edit.strength * strength, option.sets))
            earlier[place] += 1
        return tuple(draws)

    @cached_property
    def _draws_of_cells(self) -> dict[CellName, tuple[float, ...]]:
        return {cell.name: cell.draws for cell in self.census.cells}


def chance_of(seed: int, key: str, purpose: str) -> float:
    """A pseudo-random number in [0, 1) that depends only on seed, key and purpose."""
    digest = hashlib.blake2b(f"{seed}\0{key}\0{purpose}".encode(), digest_size=6).digest()  # exact as a float
    return int.from_bytes(digest, "little") / 2**48


def systematic_sample(expected: Sequence[float], chance: float) -> list[int]:
    """Systematic sampling (Madow 1949): the places 0, 1, ... that an image with `chance` draws.

    The places are adjacent intervals of the lengths `expected`. A place is drawn once for each of the points chance,
    chance + 1, chance + 2, ... in its interval. Place i is drawn expected[i] times on average over all chances, and for
    each chance that number rounded up or down.
    """
    ends = list(accumulate(expected))
    points = takewhile(lambda point: ends and point < ends[-1], (chance + number for number in count()))
    return [bisect_right(ends, point) for point in points]


def share_out(weights: Sequence[float], most: Sequence[float], total: float) -> list[float]:
    """Divide `total` by weight into shares of at most `most`. The excess of a full share goes to the others."""
    shares = [0.0] * len(weights)
    sharing = set(range(len(weights)))
    while sharing:
        unit = total / sum(weights[index] for index in sharing)
        full = {index for index in sharing if unit * weights[index] >= most[index]}
        for index in full or sharing:
            shares[index] = most[index] if full else unit * weights[index]
            total -= shares[index]
        sharing = sharing - full if full else set()
    return shares
