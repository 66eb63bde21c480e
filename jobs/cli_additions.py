"""`asyrp retry` and `asyrp extend`."""

from typing import Annotated

import typer

from jobs.cli.options import AsJson, Root, engine_from_flags, takes
from jobs.display import console
from jobs.runs.session import run_and_report
from jobs.spec.paths import absolute_url
from jobs.spec.run import EngineSpec


@takes(engine_from_flags)
def retry(
    engine: EngineSpec,
    root: Root,
    status: Annotated[
        list[str] | None, typer.Option("--status", help="A status of rows to redo. Repeat. [default: fetch_error]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Do the images again whose rows have a status, such as fetch_error: only those, with the same settings.

    An image that has changed since it was planned is taken as it is now. Exit codes as of `run`.

    **Example:** asyrp retry s3://bucket/edited --status fetch_error --status decode_error
    """
    from jobs.runs.growth import retry, spec_of

    root = absolute_url(root)
    spec = spec_of(root, engine)
    addition = retry(root, frozenset(status or ["fetch_error"]))
    console.print(f"{addition.images} images to do again" if addition else "no image to do again", highlight=False)
    raise typer.Exit(run_and_report(spec, as_json, {"added": addition.images if addition else 0}))


@takes(engine_from_flags)
def extend(engine: EngineSpec, root: Root, as_json: AsJson = False) -> None:
    """Edit the images that are new in the source of a run; say which have changed or are gone.

    What is committed stays as it is: a changed image is edited again with `retry` only if its row failed. Exit codes as
    of `run`.

    **Example:** asyrp extend s3://bucket/edited
    """
    from jobs.runs.growth import extend, spec_of
    from jobs.runs.resolve import resolve

    root = absolute_url(root)
    spec = spec_of(root, engine)
    found = extend(root, resolve(spec))
    images = found.addition.images if found.addition else 0
    console.print(f"{images} new images, {found.changed} changed, {found.deleted} gone", highlight=False)
    for what, keys in found.examples.items():
        for key in keys:
            console.print(f"  {what}: {key}", highlight=False)
    facts = {"added": images, "changed": found.changed, "deleted": found.deleted, "examples": found.examples}
    raise typer.Exit(run_and_report(spec, as_json, facts))
