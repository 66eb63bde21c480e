"""Renders a report as one HTML file. It holds the rows, compressed, the pictures, styles and scripts, and needs no
other file."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from asyrp.measures.names import METRICS
from jobs.display import bound_text
from jobs.results.report import Report
from jobs.results.tables import SHARES, headline, tables
from pipeline.images.statuses import OK
from pipeline.results.highlights import spread
from pipeline.results.rows import STRENGTH, EncodedTexts, Results
from pipeline.results.summaries import throughput
from pipeline.run.names import printable

NAME = "report.html"
TABLE_ROWS = 100_000
"""The most rows on a page. If a run has more, the page has the rows with pictures, failed rows (at most half as many)
and an even sample."""

STEM = "\0"
"""Stands in the path of an output for the key without its extension. The rest of the path is the same for many rows."""

SAYS = {STRENGTH: "the strength that was found for the image"}


def render(report: Report, reload_seconds: float | None) -> bytes:
    """The page. It reloads itself every `reload_seconds`, if they are given."""
    shown = shown_rows(report.results.statuses.equals(OK), list(report.pictures))
    columns = row_columns(report, shown)
    template = _environment().get_template("report.html")
    page = template.render(
        report=report,
        headline=headline(report),
        tables=tables(report),
        bound=bound_text(report.time_spent.shares) if report.time_spent.shares else None,
        share_names=SHARES,
        throughput=throughput(report.results),
        metrics=_metrics(report.results),
        shown=len(shown),
        rows=_packed(columns),
        pictures=_pictures(report, shown, columns["key"]["codes"]),
        reload_seconds=reload_seconds,
    )
    return page.encode()


def shown_rows(ok: NDArray[np.bool_], pictured: Sequence[int]) -> NDArray[np.intp]:
    """The rows that the page holds, in rising order. `ok` says for each row whether it has an image, `pictured` are the
    rows with pictures."""
    rows = np.arange(len(ok))
    if len(ok) <= TABLE_ROWS:
        return rows
    first = np.union1d(np.asarray(pictured, np.intp), spread(np.flatnonzero(~ok), TABLE_ROWS // 2))
    return np.union1d(first, spread(rows, TABLE_ROWS - len(first)))


def row_columns(report: Report, shown: NDArray[np.intp]) -> dict[str, Any]:
    """The rows of the page by column; texts that repeat are numbered."""
    results = report.results
    place_of = {int(row): place for place, row in enumerate(shown)}
    coded = {"key": results.keys, "edit": results.edits, "status": results.statuses, "error": results.errors}
    return {
        **{name: _coded_texts(column, shown) for name, column in coded.items()},
        "place": _coded_places(results, shown),
        "metrics": {name: _rounded(values[shown]) for name, values in results.metrics.items()},
        "pictured": [place_of[row] for row in report.pictures],
        "missing": {
            place_of[row]: [pair.before.missing, pair.after.missing]
            for row, pair in report.pictures.items()
            if pair.before.missing or pair.after.missing
        },
    }


def _coded(column: EncodedTexts, shown: NDArray[np.intp]) -> dict[str, Any]:
    used, codes = np.unique(column.codes[shown], return_inverse=True)
    names = [None if code < 0 else column.names[code] for code in used]
    return {"names": names, "codes": codes.tolist()}


def _coded_texts(column: EncodedTexts, shown: NDArray[np.intp]) -> dict[str, Any]:
    coded = _coded(column, shown)
    return coded | {"names": [name and printable(name) for name in coded["names"]]}


def _coded_places(results: Results, shown: NDArray[np.intp]) -> dict[str, Any]:
    keys = (printable(results.keys.names[code]) for code in results.keys.codes[shown])
    places = [place and printable(place) for place in results.output_paths.take(shown).to_pylist()]
    patterns = [place and place.replace(stem(key), STEM, 1) for key, place in zip(keys, places, strict=True)]
    return _coded(EncodedTexts.encode(pa.chunked_array([patterns], pa.string())), np.arange(len(shown)))


def stem(key: str) -> str:
    """A key without its extension. The script of the page does the same."""
    head, _, extension = key.rpartition(".")
    return key if "/" in extension else head


def _rounded(values: NDArray[np.float32]) -> list[float | None]:
    return [float(f"{value:.4g}") if isfinite(value) else None for value in values.tolist()]


def _packed(columns: Mapping[str, Any]) -> str:
    """Columns as JSON, compressed and in base64. The page unpacks it with DecompressionStream("deflate")."""
    return base64.b64encode(zlib.compress(json.dumps(columns, separators=(",", ":")).encode(), 6)).decode()


def _pictures(report: Report, shown: NDArray[np.intp], keys: Sequence[int]) -> dict[str, dict[int, str]]:
    """WebP in base64: sources by the number of their key on the page, outputs by the number of their row on the
    page."""
    before: dict[int, str] = {}
    after: dict[int, str] = {}
    for row, pair in report.pictures.items():
        place = int(np.searchsorted(shown, row))
        if pair.before.webp:
            before[keys[place]] = base64.b64encode(pair.before.webp).decode()
        if pair.after.webp:
            after[place] = base64.b64encode(pair.after.webp).decode()
    return {"before": before, "after": after}


def _metrics(results: Results) -> list[dict[str, str | None]]:
    return [
        {
            "name": name,
            "better": METRICS[name].better if name in METRICS else None,
            "says": METRICS[name].says if name in METRICS else SAYS.get(name, "a classifier's score of the output"),
        }
        for name in results.judgements
    ]


def _literal(value: Any) -> Any:
    """A text of a run as the page shows it; what the page is made of, which is Markup, stays as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _environment() -> Environment:
    loader = PackageLoader("jobs.results")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_literal,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["verbatim"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment
