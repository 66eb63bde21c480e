"""`asyrp run`, `plan`, `demo`, `status`, `retry` and `extend`: the commands that make a run and follow it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from asyrp.models.folder import BUNDLED
from jobs.cli.options import AsJson, Root, engine_from_flags, takes
from jobs.cli.run_options import spec_from_flags
from jobs.display import console, out, report, state_table
from jobs.runs.resolve import resolve
from jobs.runs.session import read_state, run_and_report
from jobs.spec.paths import absolute_url
from jobs.spec.run import EngineSpec, RunSpec, load_spec
from pipeline.images.skipped import not_read
from pipeline.images.statuses import FETCH_ERROR
from pipeline.run.progress import RunState
from pipeline.storage.store import Store

if TYPE_CHECKING:  # torch loads only when a command needs it
    from jobs.runs.estimate import Estimate

WATCH_SECONDS = 2.0


@takes(spec_from_flags)
def run(spec: RunSpec, as_json: AsJson = False) -> None:
    """Edit every image of a source. Safe to repeat: what is committed is not done again.

    Exit codes: 0 all committed, 2 usage, 3 finished with quarantined shards, 4 too many images failed or the device
    keeps breaking, 5 the machine, the cluster or the store failed (the same command goes on), 130 stopped.

    **Example:** asyrp run -s photos/ -o edited/ -e glasses=1 -e "smile=1,beard=-0.5"
    """
    raise typer.Exit(run_and_report(spec, as_json))


@takes(spec_from_flags)
def plan(spec: RunSpec, as_json: AsJson = False) -> None:
    """Say what `run` with the same arguments would do and cost. Touches nothing.

    **Example:** asyrp plan -s photos/ -o edited/ -e glasses=1
    """
    from jobs.runs.estimate import estimate

    cost = estimate(resolve(spec))
    report(cost.as_json(), as_json, lambda: out.print(cost_table(cost, spec)))


def cost_table(cost: "Estimate", spec: RunSpec) -> Table:
    table = Table(show_header=False)
    table.add_row("images", f"{cost.images:,}")
    if cost.skipped:
        table.add_row("not read", not_read(cost.skipped))
    table.add_row("shards", f"{cost.shards:,} of up to {spec.shard_size} images")
    table.add_row("edited images", f"{cost.outputs:,}")
    table.add_row("process", f"{cost.solver}, {cost.n_inv} + {cost.n_gen} steps")
    table.add_row(
        "network calls per image",
        f"{cost.unet_calls_per_image:.1f} ({cost.encodes_per_image} encodes, {cost.decodes_per_image} decodes)",
    )
    for name, verdict in cost.verdicts.items():
        table.add_row(f"direction {name}", verdict)
    table.add_row("storage", f"{cost.output_megabytes:,.1f} MB images, {cost.latent_megabytes:,.1f} MB latents")
    table.add_row("computing time", f"{cost.cost.text}, on devices as here ({cost.device}, {cost.dtype})")
    return table


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Root of the run.")] = Path("asyrp-demo"),
    as_json: AsJson = False,
) -> None:
    """Edit 64 bundled cartoon faces with two edits and draw a contact sheet. Needs no network and no GPU."""
    samples = BUNDLED / "avatars" / "samples"
    edits = ["glasses=1", "smile=1"]
    flags = {"source": str(samples), "output": str(output), "edits": edits, "shard_size": 16}
    raise typer.Exit(run_and_report(load_spec(None, flags, []), as_json))


def status(
    root: Root,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run is complete.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say how far a run is, from its storage alone: from any machine, during the run or after it."""
    store = Store(root)
    while True:
        state = read_state(store)
        report(state_json(state), as_json, lambda: print_state(state))  # noqa: B023
        if not watch or state.complete:
            return
        time.sleep(WATCH_SECONDS)


def print_state(state: RunState) -> None:
    out.print(state_table(state))
    out.print(f"{'complete' if state.complete else 'not complete'}, {len(state.actors)} actors at work")


def state_json(state: RunState) -> dict[str, Any]:
    stages = {name: {**vars(stage), "rows": dict(stage.rows)} for name, stage in state.stages.items()}
    return {"complete": state.complete, "stages": stages, "actors": state.actors}


@takes(engine_from_flags)
def retry(
    engine: EngineSpec,
    root: Root,
    status: Annotated[
        list[str] | None, typer.Option(help="A status of rows to redo. Repeat. [default: fetch_error]")
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
    addition = retry(root, frozenset(status or [FETCH_ERROR]))
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
