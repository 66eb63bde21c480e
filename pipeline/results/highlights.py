"""Which rows of a run are worth a picture: some of each edit, the worst and best by every metric, some failures."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from asyrp.measures.names import METRICS
from pipeline.images.statuses import OK
from pipeline.results.rows import Results

ON_SHEET, EXTREMES, FAILURES = 12, 6, 6
Places = NDArray[np.intp]


def highlights(results: Results, most: int) -> list[int]:
    """The rows to be shown, no more than so many; the first are those that matter most."""
    chosen = dict.fromkeys([*interleaved(sheets(results)), *interleaved(failures(results)), *extremes(results)])
    return list(chosen)[:most]


def sheets(results: Results) -> list[Places]:
    """Of each edit some rows with an image, spread evenly: the same images of each, if none failed."""
    ok = results.statuses.equals(OK)
    return [spread(np.flatnonzero(ok & of_edit), ON_SHEET) for of_edit in _by_edit(results)]


def failures(results: Results) -> list[Places]:
    """Of each status but ok some rows, spread evenly."""
    failed = (results.statuses.equals(status) for status in results.statuses.names if status != OK)
    return [spread(np.flatnonzero(rows), FAILURES) for rows in failed]


def extremes(results: Results) -> Iterator[int]:
    """Of each edit the worst and the best rows by each metric, and those with the lowest and highest scores; the very
    worst and best first."""
    return interleaved(
        order
        for name, values in results.judgements.items()
        for of_edit in _by_edit(results)
        for order in worst_and_best(name, values, np.flatnonzero(of_edit))
    )


def worst_and_best(name: str, values: NDArray[np.float32], among: Places) -> tuple[Places, Places]:
    """The EXTREMES worst of the rows `among`, the worst first, and the best. Of a score: the lowest and highest."""
    measured = among[np.isfinite(values[among])]
    rising = measured[np.argsort(values[measured], kind="stable")]
    low, high = rising[:EXTREMES], rising[::-1][:EXTREMES]
    return (high, low) if name in METRICS and METRICS[name].better == "low" else (low, high)


def interleaved(lists: Iterable[Places]) -> Iterator[int]:
    """The first of every list, then the second, and so on."""
    for of_rank in zip_longest(*lists):
        yield from (int(row) for row in of_rank if row is not None)


def _by_edit(results: Results) -> Iterator[NDArray[np.bool_]]:
    return map(results.edits.equals, results.edits.names)


def spread(rows: Places, count: int) -> Places:
    """So many of the rows, or all if there are fewer, at even distances."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.intp))]
