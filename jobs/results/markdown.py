"""Renders a report as Markdown, with charts and a contact sheet as PNG, for a terminal or a pull request."""

import io
from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jobs.display import bound_text
from jobs.results.report import Report
from jobs.results.tables import headline, named, signif, tables
from pipeline.datasets.card import markdown_table
from pipeline.results.highlights import sheets, worst_and_best
from pipeline.results.rows import Results
from pipeline.results.sheet import Caption, lay_sheet
from pipeline.results.thumbnails import PIXELS, Thumbnail
from pipeline.run.names import markdown_cell

NAME, CHARTS, SHEET = "report.md", "report_charts.png", "report_sheet.png"
PAIRS, EXTREMES = 8, 3
COLUMNS, BINS = 3, 25
GAP, HEADER = 4, 22


def render(report: Report) -> dict[str, bytes]:
    """The files of the report by name: the Markdown and its pictures."""
    pictures = {CHARTS: charts(report.results), SHEET: contact_sheet(report)}
    there = {name: data for name, data in pictures.items() if data is not None}
    return {NAME: "\n".join(_lines(report, there)).encode(), **there}


def _lines(report: Report, pictures: Mapping[str, bytes]) -> Iterator[str]:
    yield from ("# What the edits did", "")
    yield from (
        f"{markdown_cell(report.root)}: {markdown_cell(report.verdict)}, as of {report.made_at:%Y-%m-%d %H:%M:%S} UTC.",
        "",
    )
    yield from markdown_table(("", ""), headline(report).items())
    yield ""
    if report.time_spent.shares:
        yield from (f"{bound_text(report.time_spent.shares)}.", "")
    for name, alt in ((SHEET, "Pairs of images before and after each edit"), (CHARTS, "Histograms by edit")):
        if name in pictures:
            yield from (f"![{alt}]({name})", "")
    for table in tables(report):
        yield from (f"## {table.title}", "")
        yield from (table.note, "") if table.note else ()
        yield from markdown_table(table.head, table.rows)
        yield ""
    yield from _extremes(report.results)


def _extremes(results: Results) -> Iterator[str]:
    """A table of the worst and the best rows by every metric, over all edits."""
    rows = [
        (named(name), place, signif(values[row]), *_names(results, row))
        for name, values in results.judgements.items()
        for place, order in zip(("worst", "best"), worst_and_best(name, values, np.arange(len(results))), strict=True)
        for row in order[:EXTREMES].tolist()
    ]
    if rows:
        yield from ("## Worst and best", "", "Of a classifier's scores: the lowest and the highest.", "")
        head = ("metric", "", "value", "key", "edit", "output")
        yield from markdown_table(head, rows)


def _names(results: Results, row: int) -> tuple[str, str, str]:
    key = results.keys.names[results.keys.codes[row]]
    edit = results.edits.names[results.edits.codes[row]]
    return key, edit, results.output_paths[row].as_py() or results.statuses.names[results.statuses.codes[row]]


def charts(results: Results) -> bytes | None:
    """A PNG with a histogram of every metric, one line for each edit; None if nothing was measured."""
    if not results.judgements:
        return None
    lines = -(-len(results.judgements) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * lines), layout="constrained", dpi=90)
    for place, (name, values) in enumerate(results.judgements.items(), 1):
        axes = figure.add_subplot(lines, COLUMNS, place)
        axes.set_title(named(name), parse_math=False)
        bins = np.histogram_bin_edges(values[np.isfinite(values)], BINS).tolist()
        for edit in results.edits.names:
            of_edit = values[results.edits.equals(edit) & np.isfinite(values)]
            if len(of_edit):
                axes.hist(of_edit, bins, density=True, histtype="step", label=edit)
        axes.set_yticks([])
        axes.legend(fontsize="x-small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def contact_sheet(report: Report) -> bytes | None:
    """A PNG with a line for each edit, of pairs of pictures before and after it; None if there are no pictures."""
    chosen = [[row for row in rows.tolist() if row in report.pictures][:PAIRS] for rows in sheets(report.results)]
    lines = [
        (edit, [report.pictures[row] for row in rows])
        for edit, rows in zip(report.results.edits.names, chosen, strict=True)
        if rows
    ]
    if not lines:
        return None
    step, height = 2 * PIXELS + 2 * GAP, HEADER + PIXELS + GAP
    size = (max(len(pairs) for _, pairs in lines) * step + GAP, len(lines) * height)
    captions = [Caption((GAP, y * height + 3), f"{edit}: before and after") for y, (edit, _) in enumerate(lines)]
    tiles = [
        ((GAP + x * step + side * PIXELS, y * height + HEADER), _tile(thumbnail))
        for y, (_, pairs) in enumerate(lines)
        for x, pair in enumerate(pairs)
        for side, thumbnail in enumerate(pair)
    ]
    buffer = io.BytesIO()
    lay_sheet(size, tiles, captions).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tile(thumbnail: Thumbnail) -> Image.Image:
    if thumbnail.webp is None:
        return Image.new("RGB", (PIXELS, PIXELS), "lightgray")
    return Image.open(io.BytesIO(thumbnail.webp)).resize((PIXELS, PIXELS), Image.Resampling.NEAREST)
