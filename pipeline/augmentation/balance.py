"""Computes how often the images of each cell draw each edit, so that groups of labels become equally large.

This is a transportation problem. The draws that images can make are the supply. The images that a group has fewer than
the largest group are the demand. An edit leads from the group of its image to the group of its result. No group grows
beyond the largest.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.augmentation.draws import Augmentation, Cell, Labels

MEAN_LACK_WEIGHT, DRAWS_WEIGHT = 1e-2, 1e-4
"""The weights of the mean lack of the groups and of the mean number of draws; the largest lack has weight 1."""

Group = tuple[float, ...]
"""The values of the labels that are balanced."""


@dataclass(frozen=True)
class Route:
    """The draws of a cell (an index) that lead to one group, by any of the options (indices)."""

    cell: int
    group: Group
    options: tuple[int, ...]


def group_name(group: Labels) -> str:
    """A group in words, such as "beard=1, glasses=0"."""
    return ", ".join(f"{name}={value:g}" for name, value in group.items())


def balanced(augmentation: Augmentation, cells: Sequence[Cell]) -> list[Cell]:
    """The cells with their draws per image and option, which make the groups as equal as possible."""
    routes = [route for index, cell in enumerate(cells) for route in _routes(augmentation, index, cell)]
    draws: list[dict[int, float]] = [{} for _ in cells]
    for route, flow in zip(routes, _flows(augmentation, cells, routes), strict=True):
        per_image = flow / cells[route.cell].images
        shares = augmentation.split_by_weight(route.options, per_image)
        draws[route.cell].update(zip(route.options, shares, strict=True))
    return [
        replace(cell, draws=tuple(drawn[option] for option in cell.options))
        for cell, drawn in zip(cells, draws, strict=True)
    ]


def group_sizes(augmentation: Augmentation, cells: Sequence[Cell]) -> dict[str, tuple[int, float]]:
    """For each group its images in the source, and the expected images with the edited ones."""
    before, drawn = Counter[str](), defaultdict[str, float](float)
    for cell in cells:
        before[group_name(cell.group)] += cell.images
        for option, times in zip(cell.options, cell.draws, strict=True):
            drawn[group_name(_after(augmentation, cell, option))] += cell.images * times
    return {name: (before[name], before[name] + drawn[name]) for name in sorted(before.keys() | drawn.keys())}


def _after(augmentation: Augmentation, cell: Cell, option: int) -> Labels:
    """The group of an edited image: that of its cell, with the labels that the option sets."""
    sets = augmentation.options[option].sets
    return {name: sets.get(name, value) for name, value in cell.group.items()}


def _routes(augmentation: Augmentation, index: int, cell: Cell) -> list[Route]:
    options: dict[Group, list[int]] = {}
    for option in cell.options:
        options.setdefault(tuple(_after(augmentation, cell, option).values()), []).append(option)
    return [Route(index, group, tuple(leading)) for group, leading in options.items()]


def _flows(augmentation: Augmentation, cells: Sequence[Cell], routes: Sequence[Route]) -> list[float]:
    """The number of draws on each route, by a linear program in units of the largest group.

    Its variables are the draws on each route, the lack of each group, and the largest lack of a group that a route
    reaches.
    """
    from scipy.optimize import linprog  # a slow import, needed only when a run is planned

    sizes: Counter[Group] = Counter()
    for cell in cells:
        sizes[cell.name[0]] += cell.images
    groups = sorted(sizes.keys() | {route.group for route in routes})
    largest = max(sizes.values())
    n, g = len(routes), len(groups)
    leads_to = np.array([[route.group == group for route in routes] for group in groups], dtype=float).reshape(g, n)
    comes_from = np.array([[route.cell == index for route in routes] for index in range(len(cells))], dtype=float)
    can_be_reached = np.diag(leads_to.any(1).astype(float))
    most_draws = [sum(augmentation.most_draws(route.options)) for route in routes]
    found = linprog(
        np.concatenate([np.full(n, DRAWS_WEIGHT / max(n, 1)), np.full(g, MEAN_LACK_WEIGHT / g), [1]]),
        A_eq=np.hstack([leads_to, np.eye(g), np.zeros((g, 1))]),
        b_eq=np.array([1 - sizes[group] / largest for group in groups]),
        A_ub=np.vstack(
            [
                np.hstack([comes_from.reshape(len(cells), n), np.zeros((len(cells), g + 1))]),
                np.hstack([np.zeros((g, n)), can_be_reached, np.full((g, 1), -1.0)]),
            ]
        ),
        b_ub=np.concatenate([[augmentation.draws * cell.images / largest for cell in cells], np.zeros(g)]),
        bounds=[
            *((0, most * cells[route.cell].images / largest) for route, most in zip(routes, most_draws, strict=True)),
            *[(0, None)] * (g + 1),
        ],
    )
    flows: list[float] = (np.maximum(found.x[:n], 0) * largest).tolist()
    return flows
