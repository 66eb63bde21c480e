"""`asyrp report`: a page, or Markdown with pictures, on which edits worked."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.options import AsJson, Root, one_of, print_paths
from jobs.display import report
from jobs.spec.paths import absolute_url
from pipeline.storage.store import Store, explained

if TYPE_CHECKING:
    from jobs.results.report import Report

FOLDER = "report"
FORMATS = ("html", "markdown", "both")
WATCH_SECONDS = 5.0


def report_command(
    root: Root,
    format_: Annotated[str, typer.Option("--format", help="html, markdown or both.")] = "html",
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A folder, on any fsspec URL. [default: ROOT/report]")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again and again until the run is complete; the page follows.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the edits did: counts, metrics, the worst and best images, pairs before and after, cost.

    Reads storage alone, during the run or after it. Writes one page that any browser opens without a network, or
    Markdown with pictures.

    **Example:** asyrp report edited/ --watch
    """
    from jobs.results.report import ReportReader

    one_of("format", format_, FORMATS)
    run = Store(absolute_url(root))
    target, folder = (Store(absolute_url(output)), "") if output else (run, f"{FOLDER}/")
    reader, announced = ReportReader(run), False
    while True:
        found = reader.read()
        goes_on = watch and not found.state.complete
        paths = _write(target, {f"{folder}{name}": data for name, data in _files(found, format_, goes_on)})
        if not announced and not (goes_on and as_json):
            facts = {"files": paths, "complete": found.state.complete, "rows": len(found.results)}
            report(facts, as_json, lambda: print_paths(paths))  # noqa: B023
            announced = True
        if not goes_on:
            return
        time.sleep(WATCH_SECONDS)


def _write(target: Store, files: Mapping[str, bytes]) -> list[str]:
    """Write the files of a report; their paths."""
    with explained(f"cannot write to {target.url}"):
        for name, data in files.items():
            target.write(name, data)
    return [target.path(name) for name in files]


def _files(found: "Report", format_: str, goes_on: bool) -> Iterator[tuple[str, bytes]]:
    from jobs.results import markdown, page

    if format_ != "markdown":
        yield page.NAME, page.render(found, WATCH_SECONDS if goes_on else None)
    if format_ != "html":
        yield from markdown.render(found).items()
