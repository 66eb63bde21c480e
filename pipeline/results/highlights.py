"""Chooses the rows of a run that are worth a picture: some of each edit, the worst and best by metric, some
failures."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from asyrp.measures.names import METRICS
from pipeline.images.statuses import OK
from pipeline.results.rows import Results

ON_SHEET, EXTREMES, FAILURES = 12, 6, 6
RowNumbers = NDArray[np.intp]
"""Rows of `Results` by their number, [n]."""


def highlights(results: Results, most: int) -> list[int]:
    """At most `most` rows to show, those that matter most first."""
    chosen = dict.fromkeys([*interleaved(sheets(results)), *interleaved(failures(results)), *extremes(results)])
    return list(chosen)[:most]


def sheets(results: Results) -> list[RowNumbers]:
    """For each edit some rows with an image, spread evenly. If none failed, all edits have the same images."""
    ok = results.statuses.equals(OK)
    return [spread(np.flatnonzero(ok & of_edit), ON_SHEET) for of_edit in _by_edit(results)]


def failures(results: Results) -> list[RowNumbers]:
    """For each status except `ok` some rows, spread evenly."""
    failed = (results.statuses.equals(status) for status in results.statuses.names if status != OK)
    return [spread(np.flatnonzero(rows), FAILURES) for rows in failed]


def extremes(results: Results) -> Iterator[int]:
    """For each edit the worst and best rows by each metric, and the rows with the lowest and highest scores. The first
    place of every list comes first."""
    return interleaved(
        order
        for name, values in results.judgements.items()
        for of_edit in _by_edit(results)
        for order in worst_and_best(name, values, np.flatnonzero(of_edit))
    )


def worst_and_best(name: str, values: NDArray[np.float32], among: RowNumbers) -> tuple[RowNumbers, RowNumbers]:
    """The EXTREMES worst of the rows `among`, the worst first, and the EXTREMES best. For a score: lowest and
    highest."""
    measured = among[np.isfinite(values[among])]
    rising = measured[np.argsort(values[measured], kind="stable")]
    low, high = rising[:EXTREMES], rising[::-1][:EXTREMES]
    return (high, low) if name in METRICS and METRICS[name].better == "low" else (low, high)


def interleaved(lists: Iterable[RowNumbers]) -> Iterator[int]:
    """The first of every list, then the second, and so on."""
    for of_rank in zip_longest(*lists):
        yield from (int(row) for row in of_rank if row is not None)


def _by_edit(results: Results) -> Iterator[NDArray[np.bool_]]:
    return map(results.edits.equals, results.edits.names)


def spread(rows: RowNumbers, count: int) -> RowNumbers:
    """At most `count` of the rows, at even distances."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.intp))]
