"""`asyrp evaluate` and `asyrp fid`: measure finished images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from jobs.cli.fields import Flag, from_fields
from jobs.cli.options import AsJson, ClipOption, ModelOption, Root, Work, engine_from_flags, takes
from jobs.display import console, live, out, report
from jobs.runs.run import exit_code
from jobs.runs.session import show_summary
from jobs.spec.inspection import InspectionSpec
from jobs.spec.paths import absolute_model, absolute_url
from jobs.spec.run import EngineSpec, load_inspection

if TYPE_CHECKING:  # numpy and pyarrow load only when a command needs them
    from jobs.results.tables import Table as ReportTable


@takes(from_fields(InspectionSpec, Flag("metrics", "metric")))
def inspection_from_flags(
    flags: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML with the fields of a spec's `inspection`.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="name=value of such a field: identity=face.onnx. Repeat.")
    ] = None,
) -> InspectionSpec:
    """The metrics to measure and their settings, from a YAML file and options."""
    return load_inspection(config, flags, set_ or [])


@takes(engine_from_flags, inspection_from_flags)
def evaluate(
    engine: EngineSpec,
    asked: InspectionSpec,
    root: Root,
    again: Annotated[
        bool, typer.Option("--again", help="Also measure shards with images that could not be read the last time.")
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

    found = evaluate(absolute_url(root), asked, engine, again, live)
    show_summary(found.outcome, found.state, engine)
    for reason, rows in found.unread.items():
        console.print(f"not measured, {rows} rows: {reason}", highlight=False, soft_wrap=True)
    report(evaluated_json(found), as_json, lambda: out.print(_as_shown(measured(found.results))))
    raise typer.Exit(exit_code(found.outcome))


def _as_shown(table: "ReportTable") -> Table:
    """A table of a report, for the terminal."""
    shown = Table(*table.head, caption=table.note)
    for row in table.rows:
        shown.add_row(*row)
    return shown


@takes(engine_from_flags)
def fid(
    engine: EngineSpec,
    first: Annotated[str, typer.Argument(help="A source of images. Without a second source: the root of a run.")],
    second: Annotated[
        str | None, typer.Argument(help="A second source. [default: the images that the run's edits were made from]")
    ] = None,
    model: ModelOption = "avatars",
    clip: ClipOption = None,
    work: Work = None,
    as_json: AsJson = False,
) -> None:
    """Measure FID and KID between two sources, or between each edit of a run and the images it was made from.

    The features are those of a CLIP, which the output names. Never compare them with the FID of papers, which uses
    features of Inception. Two sources are read at the image size of --model, a run at its own.

    **Example:** asyrp fid edited/
    """
    from jobs.results.set_distances import compare_edits, compare_sources

    kept = absolute_url(work) if work else None
    if second is None:
        found = compare_edits(absolute_url(first), clip, kept, engine)
    else:
        found = compare_sources(
            absolute_url(first), absolute_url(second), model=absolute_model(model), clip=clip, work=kept, engine=engine
        )

    def show() -> None:
        table = Table("set", "FID", "KID", "images", caption=f"features: {found.features}; not Inception's")
        for name, of in found.distances.items():
            table.add_row(
                name, f"{of.fid:.4g}", f"{of.kid:.4g} ± {of.kid_std:.2g}", f"{of.images[0]} and {of.images[1]}"
            )
        out.print(table)

    facts = {"features": found.features, "distances": {name: vars(of) for name, of in found.distances.items()}}
    report(facts, as_json, show)
