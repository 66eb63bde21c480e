"""What an augmentation draws for an image: edits and strengths, as a function of the image's key, its labels and what
run.json says, whatever the order and number of images.

    labels of the source -> census: images by cell -> how often each cell is to draw each edit -> draws of an image
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
"""Values of the labels that are balanced, and the options (indices) that are open."""

GOLDEN = 0.6180339887498949
"""Its multiples, modulo 1, lie as far from each other as can be."""


@dataclass(frozen=True)
class Uniform:
    """Any strength from `low` to `high`."""

    low: float
    high: float

    def different(self, draws: int) -> int:
        """How many of `draws` strengths can be different."""
        return draws

    def at(self, chance: float, earlier: int) -> float:
        """The strength of an image with this chance, in [0, 1), that has drawn the edit so often before."""
        return self.low + (chance + earlier * GOLDEN) % 1 * (self.high - self.low)


@dataclass(frozen=True)
class OneOf:
    """Any of some strengths."""

    strengths: tuple[float, ...]

    def different(self, draws: int) -> int:
        """As of `Uniform`."""
        return min(draws, len(self.strengths))

    def at(self, chance: float, earlier: int) -> float:
        """As of `Uniform`."""
        return self.strengths[(int(chance * len(self.strengths)) + earlier) % len(self.strengths)]


@dataclass(frozen=True)
class Option:
    """An edit that images may draw on whose labels all of `where` holds. `strengths` multiply its own; `sets` are the
    labels of the result that it changes, and to what."""

    edit: Edit
    strengths: Uniform | OneOf
    weight: float
    where: tuple[Condition, ...]
    sets: Labels

    def is_open_to(self, labels: Labels) -> bool:
        """Whether an image with these labels may draw it. Raises UserError if a condition is on no label."""
        return all(condition.holds(labels) for condition in self.where)


@dataclass(frozen=True)
class Cell:
    """Images with the same labels to be balanced (`group`) and the same open options (indices): how many there are in
    the source, and how often one of them is to draw each of the options, on average."""

    group: Labels
    options: tuple[int, ...]
    images: int
    draws: tuple[float, ...] = ()

    @property
    def name(self) -> CellName:
        return tuple(self.group.values()), self.options


@dataclass(frozen=True)
class Census:
    """What a run was planned with: the names of the source's labels, what each option sets of them, and the cells of
    the source; none where nothing is balanced."""

    labels: tuple[str, ...]
    sets: tuple[Labels, ...]
    cells: tuple[Cell, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Census":
        """What `as_json` gave, with lists for tuples."""
        cells = (Cell(c["group"], tuple(c["options"]), c["images"], tuple(c["draws"])) for c in record["cells"])
        return cls(tuple(record["labels"]), tuple(record["sets"]), tuple(cells))


@dataclass(frozen=True)
class Augmentation:
    """Up to `draws` edits for each image, no option twice at the same strength. With `balance` only those that make the
    groups of these labels equally large; without, as many as are open, by weight."""

    options: tuple[Option, ...]
    draws: int
    balance: tuple[str, ...]
    seed: int

    def cell_of(self, labels: Labels) -> CellName:
        """The cell of an image with these labels."""
        open_to = tuple(index for index, option in enumerate(self.options) if option.is_open_to(labels))
        return tuple(labels[name] for name in self.balance), open_to

    def cells(self, labels_of_images: Iterable[Labels]) -> list[Cell]:
        """The cells of all images of a source, in a fixed order, without draws."""
        counts = Counter(self.cell_of(labels) for labels in labels_of_images)
        return [
            Cell(dict(zip(self.balance, values, strict=True)), options, counts[values, options])
            for values, options in sorted(counts)
        ]

    def most(self, options: Sequence[int]) -> list[float]:
        """How often one image can draw each of some options."""
        return [self.options[index].strengths.different(self.draws) for index in options]

    def shares(self, options: Sequence[int], total: float) -> list[float]:
        """`total` draws of one image divided among options by their weights, as far as they can be drawn."""
        return share_out([self.options[index].weight for index in options], self.most(options), total)


@dataclass(frozen=True)
class Drawing:
    """An augmentation together with the census that it was planned with."""

    augmentation: Augmentation
    census: Census

    def of(self, key: str, labels: Labels) -> tuple[Draw, ...]:
        """What an image draws; where groups are balanced nothing, if there was none in its cell."""
        made = self.augmentation
        group, options = made.cell_of(labels)
        if made.balance:
            expected: Sequence[float] = self._draws_of_cells.get((group, options), ())
        else:
            expected = made.shares(options, made.draws)
        draws, earlier = [], Counter[int]()
        for place in systematic_sample(expected, chance_of(made.seed, key, "edits")):
            option = made.options[options[place]]
            strength = option.strengths.at(chance_of(made.seed, key, f"strength {options[place]}"), earlier[place])
            draws.append(Draw(option.edit.name, option.edit.strength * strength, option.sets))
            earlier[place] += 1
        return tuple(draws)

    @cached_property
    def _draws_of_cells(self) -> dict[CellName, tuple[float, ...]]:
        return {cell.name: cell.draws for cell in self.census.cells}


def chance_of(seed: int, key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing else."""
    digest = hashlib.blake2b(f"{seed}\0{key}\0{purpose}".encode(), digest_size=6).digest()  # exact as a float
    return int.from_bytes(digest, "little") / 2**48


def systematic_sample(expected: Sequence[float], chance: float) -> list[int]:
    """The places at which chance, chance + 1, chance + 2, ... fall if places 0, 1, ... are as long as is expected.

    Place i is drawn expected[i] times on average over all chances, rounded up or down for each (Madow 1949).
    """
    ends = list(accumulate(expected))
    points = takewhile(lambda point: ends and point < ends[-1], (chance + number for number in count()))
    return [bisect_right(ends, point) for point in points]


def share_out(weights: Sequence[float], most: Sequence[float], total: float) -> list[float]:
    """`total` divided by weight among shares that take so much at `most`; what a full one leaves goes to the others."""
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
