"""`asyrp evaluate`: metrics of the images of a finished run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from asyrp.measures.names import METRICS
from jobs.cli.options import AsJson, Root, engine_from_flags, takes
from jobs.display import console, live, out, report
from jobs.runs.run import exit_code
from jobs.runs.session import show_summary
from jobs.spec.paths import absolute_url
from jobs.spec.run import EngineSpec, load_inspection

if TYPE_CHECKING:  # numpy and pyarrow load only when a command needs them
    from jobs.results.tables import Table as ReportTable


@takes(engine_from_flags)
def evaluate(
    engine: EngineSpec,
    root: Root,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help=f"What to measure. Repeat. Known: {', '.join(METRICS)}.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML with the fields of a spec's `inspection`.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="name=value of such a field: identity=face.onnx. Repeat.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also the shards with images that could not be read the last time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the edits of a run after the fact. The run itself stays as it is; its report shows the numbers.

    Safe to repeat: what is measured is not measured again. Exit codes as of `run`.

    **Example:** asyrp evaluate edited/ --metric s_dir --metric edit_clip
    """
    from jobs.results.evaluate import as_json as evaluated_json
    from jobs.results.evaluate import evaluate
    from jobs.results.tables import measured

    asked = load_inspection(config, {"metrics": metric or None}, set_ or [])
    found = evaluate(absolute_url(root), asked, engine, again, live)
    show_summary(found.outcome, found.state, engine)
    for reason, rows in found.unread.items():
        console.print(f"not measured, {rows} rows: {reason}", highlight=False, markup=False, soft_wrap=True)
    report(evaluated_json(found), as_json, lambda: out.print(_as_shown(measured(found.results))))
    raise typer.Exit(exit_code(found.outcome))


def _as_shown(table: "ReportTable") -> Table:
    """A table of a report in the terminal."""
    shown = Table(*table.head, caption=table.note)
    for row in table.rows:
        shown.add_row(*row)
    return shown
