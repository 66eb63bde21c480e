"""`asyrp fid`: how far sets of images are from each other."""

from typing import Annotated

import typer
from rich.table import Table

from jobs.cli.options import CLIP_HELP, AsJson, ModelOption, engine_from_flags, takes
from jobs.display import out, report
from jobs.spec.paths import absolute_model, absolute_url
from jobs.spec.run import EngineSpec


@takes(engine_from_flags)
def fid(
    engine: EngineSpec,
    first: Annotated[str, typer.Argument(help="A source of images; or, alone, the root of a run.")],
    second: Annotated[
        str | None, typer.Argument(help="Another. [default: what the run's edits were made from]")
    ] = None,
    model: ModelOption = "avatars",
    clip: Annotated[str | None, typer.Option("--clip", help=f"{CLIP_HELP} [default: as for the model]")] = None,
    work: Annotated[
        str | None, typer.Option("--work", help="Root to keep the sums at, to go on after a stop. Any URL.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """FID and KID between two sources, or of each edit of a run against what it was made from.

    In features of a CLIP, which the output names: never to be compared with the FID of papers, which is in features of
    Inception. Two sources are read at the size of --model; a run's images at its own.

    **Example:** asyrp fid edited/
    """
    from jobs.results.set_distances import compare_edits, compare_sources

    kept = absolute_url(work) if work else None
    if second is None:
        found = compare_edits(absolute_url(first), clip, kept, engine)
    else:
        found = compare_sources(absolute_url(first), absolute_url(second), absolute_model(model), clip, kept, engine)

    def show() -> None:
        table = Table("set", "FID", "KID", "images", caption=f"features: {found.features}; not Inception's")
        for name, of in found.distances.items():
            table.add_row(
                name, f"{of.fid:.4g}", f"{of.kid:.4g} ± {of.kid_std:.2g}", f"{of.images[0]} and {of.images[1]}"
            )
        out.print(table)

    facts = {"features": found.features, "distances": {name: vars(of) for name, of in found.distances.items()}}
    report(facts, as_json, show)
