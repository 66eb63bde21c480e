"""The `asyrp` command. Results go to stdout, everything else to stderr."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from asyrp.directions.info import read_info
from asyrp.errors import UserError
from asyrp.measures.names import METRICS
from asyrp.models.folder import BUNDLED
from jobs.cli.cluster import cluster_app, submit
from jobs.cli.directions.files import directions_app
from jobs.cli.directions.score import sample
from jobs.cli.intervals import intervals_app
from jobs.cli.jobs import jobs_app
from jobs.cli.models import models_app
from jobs.cli.options import AsJson, Root, takes
from jobs.cli.report import report_command
from jobs.cli.store import export, gc, verify
from jobs.cli_additions import extend, retry
from jobs.cli_evaluate import evaluate
from jobs.cli_fid import fid
from jobs.completion import complete_direction, complete_model
from jobs.display import MODEL_HELP, console, out, report, state_table
from jobs.runs.resolve import resolve
from jobs.runs.run import EXIT_USAGE
from jobs.runs.session import read_state, run_and_report
from jobs.spec.run import RunSpec, load_spec
from pipeline.run.progress import RunState
from pipeline.storage.credentials import redacted
from pipeline.storage.store import Store

if TYPE_CHECKING:  # torch loads only when a command needs it
    from jobs.runs.estimate import Estimate

WATCH_SECONDS = 2.0

app = typer.Typer(
    help="Edit image data sets in the semantic latent space of frozen diffusion models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models")
app.add_typer(directions_app, name="directions")
app.add_typer(intervals_app, name="intervals")
app.add_typer(cluster_app, name="cluster")
app.add_typer(jobs_app, name="jobs")
app.command()(sample)
app.command()(retry)
app.command()(extend)
app.command()(evaluate)
app.command()(fid)
app.command()(verify)
app.command()(gc)
app.command()(export)
app.command("report")(report_command)
app.command()(submit)

SOURCE_HELP = "Images: a folder or glob, tars, Parquet, a list of URLs, or the root of a run; on any fsspec URL."

# The options that `run` and `plan` share, in the order of their help.
Source = Annotated[str | None, typer.Option("--source", "-s", help=SOURCE_HELP)]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Root of the run, on any fsspec URL.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first so many images.")]
Sample = Annotated[float | None, typer.Option("--sample", help="Only this share of the images, chosen by key.")]
Where = Annotated[
    list[str] | None, typer.Option("--where", help="column=value, or !=, <, <=, >, >=. Repeat: all must hold.")
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="A column of the source for the manifest to carry. Repeat.")
]
ImageColumn = Annotated[str | None, typer.Option("--image-column", help="Of a table: where its images or URLs are.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help=f"{MODEL_HELP} [default: avatars]", autocompletion=complete_model)
]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        "-e",
        help="direction=strength, or a sum: 'smile=1,beard=-0.5'. Repeat for more edits.",
        autocompletion=complete_direction,
    ),
]
Directions = Annotated[
    list[str] | None, typer.Option("--direction", help="NAME=FILE: a direction file to use in edits. Repeat.")
]
Combine = Annotated[
    str | None,
    typer.Option(
        "--combine", help="Sums of directions: 'sum', or 'official' (1/sqrt(k), one interval). [default: sum]"
    ),
]
NInv = Annotated[int | None, typer.Option("--n-inv", help="Inversion steps. [default: 40]")]
Refine = Annotated[
    int | None,
    typer.Option("--refine", help="Fixed-point iterations per inversion step: 2 reconstructs better. [default: 0]"),
]
NGen = Annotated[int | None, typer.Option("--n-gen", help="Generation steps. [default: 40]")]
TEdit = Annotated[
    str | None,
    typer.Option(
        "--t-edit",
        help="Last timestep that is edited; auto, or per-image: by learned intervals. [default: the direction's]",
    ),
]
TBoost = Annotated[
    str | None,
    typer.Option("--t-boost", help="Fresh noise below this, or auto: by learned intervals. [default: the direction's]"),
]
IntervalsFile = Annotated[
    str | None,
    typer.Option("--intervals", help="What 'intervals learn' wrote. [default: what it learned for this model here]"),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the boosting noise. [default: 0]")]
Stages = Annotated[
    str | None, typer.Option("--stages", help="fused: one pass. staged: keep the inversions. [default: fused]")
]
Inversions = Annotated[
    str | None, typer.Option("--inversions", help="Root of a staged run whose inversions are used again.")
]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Pixels a side. [default: the model's]")]
FitOption = Annotated[
    str | None,
    typer.Option("--fit", help="crop: centre-crop and resize. exact: refuse other sizes. [default: crop]"),
]
CodecOption = Annotated[str | None, typer.Option("--codec", help="png, jpeg or webp. [default: png]")]
SinkOption = Annotated[
    str | None,
    typer.Option("--sink", help="files, or webdataset or parquet: one tar or table a shard. [default: files]"),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="Output names, of {key} {stem} {name} {parent} {edit} {strength}."),
]
ShardSize = Annotated[int | None, typer.Option("--shard-size", help="Images per shard. [default: 64]")]
Preview = Annotated[int | None, typer.Option("--preview", help="Images on the contact sheet. [default: 8]")]
MetricNames = Annotated[
    list[str] | None,
    typer.Option("--metric", help=f"Measure it of every edit; repeat. {', '.join(METRICS)}."),
]
Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", help="A condition on a metric, as 'recon_psnr > 25'; repeat. Edits that fail are dropped."),
]
SearchStrengths = Annotated[
    str | None,
    typer.Option("--search", help="Strengths as 0.5,0.75,1: each image gets the smallest that passes the gates."),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. [default: float32]")]
Actors = Annotated[int | None, typer.Option("--actors", help="Ray actors. [default: one a GPU, else one]")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images per network call. [default: 16 on GPU, 8]")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda. [default: auto]")]
Check = Annotated[
    bool | None, typer.Option("--check/--no-check", help="Check on load that the model works. [default: check]")
]
Address = Annotated[str | None, typer.Option("--address", help="A Ray cluster to join. [default: start one here]")]
PricePerHour = Annotated[
    float | None, typer.Option("--price-per-hour", help="What an hour of one device costs, in any currency.")
]
Log = Annotated[str | None, typer.Option("--log", help="An experiment logger: wandb:PROJECT or mlflow:URI.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML spec; flags override it.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="field=value or engine.field=value. Repeat.")]


def spec_from_flags(
    source: Source = None,
    output: Output = None,
    limit: Limit = None,
    sample_share: Sample = None,
    where: Where = None,
    column: Columns = None,
    image_column: ImageColumn = None,
    model: ModelName = None,
    edit: Edits = None,
    direction: Directions = None,
    combine: Combine = None,
    n_inv: NInv = None,
    refine: Refine = None,
    n_gen: NGen = None,
    t_edit: TEdit = None,
    t_boost: TBoost = None,
    intervals: IntervalsFile = None,
    seed: Seed = None,
    stages: Stages = None,
    inversions: Inversions = None,
    image_size: ImageSize = None,
    fit: FitOption = None,
    codec: CodecOption = None,
    sink: SinkOption = None,
    name: Name = None,
    shard_size: ShardSize = None,
    preview: Preview = None,
    metric: MetricNames = None,
    gate: Gates = None,
    search: SearchStrengths = None,
    dtype: Dtype = None,
    actors: Actors = None,
    batch_size: BatchSize = None,
    device: Device = None,
    address: Address = None,
    check: Check = None,
    price_per_hour: PricePerHour = None,
    log: Log = None,
    config: Config = None,
    set_: Settings = None,
) -> RunSpec:
    """The spec that `run` and `plan` take from their flags; its parameters are those commands' options."""
    flags: dict[str, Any] = {
        "source": source,
        "output": output,
        "limit": limit,
        "sample": sample_share,
        "where": where or None,
        "columns": column or None,
        "image_column": image_column,
        "model": model,
        "edits": edit or None,
        "directions": _named_files(direction) if direction else None,
        "combine": combine,
        "n_inv": n_inv,
        "refine": refine,
        "n_gen": n_gen,
        "t_edit": t_edit,
        "t_boost": t_boost,
        "intervals": intervals,
        "seed": seed,
        "stages": stages,
        "inversions": inversions,
        "image_size": image_size,
        "fit": fit,
        "codec": codec,
        "sink": sink,
        "name": name,
        "shard_size": shard_size,
        "preview": preview,
        "inspection.metrics": metric or None,
        "inspection.gates": gate or None,
        "inspection.search": search.split(",") if search else None,
        "dtype": dtype,
        "engine.actors": actors,
        "engine.batch_size": batch_size,
        "engine.device": device,
        "engine.address": address,
        "engine.check": check,
        "engine.price_per_hour": price_per_hour,
        "engine.log": log,
    }
    return load_spec(config, flags, set_ or [])


def _named_files(pairs: list[str]) -> dict[str, str]:
    files = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals:
            name, path = read_info(Path(pair)).name, pair
        files[name] = path
    return files


@app.command("run")
@takes(spec_from_flags)
def run_command(spec: RunSpec, as_json: AsJson = False) -> None:
    """Edit every image of a source. Safe to repeat: what is committed is not done again.

    Exit codes: 0 all committed, 2 usage, 3 finished with quarantined shards, 4 too many images failed or the device
    keeps breaking, 130 stopped.

    **Example:** asyrp run -s photos/ -o edited/ -e glasses=1 -e "smile=1,beard=-0.5"
    """
    raise typer.Exit(run_and_report(spec, as_json))


@app.command("plan")
@takes(spec_from_flags)
def plan_command(spec: RunSpec, as_json: AsJson = False) -> None:
    """Say what `run` with the same arguments would do and cost. Touches nothing.

    **Example:** asyrp plan -s photos/ -o edited/ -e glasses=1
    """
    from jobs.runs.estimate import estimate

    cost = estimate(resolve(spec))
    report(cost.as_json(), as_json, lambda: out.print(cost_table(cost, spec)))


def cost_table(cost: "Estimate", spec: RunSpec) -> Table:
    table = Table(show_header=False)
    table.add_row("images", f"{cost.images:,}")
    table.add_row("shards", f"{cost.shards:,} of up to {spec.shard_size} images")
    table.add_row("edited images", f"{cost.outputs:,}")
    table.add_row(
        "network calls per image",
        f"{cost.unet_calls_per_image:.1f} ({cost.encodes_per_image} encodes, {cost.decodes_per_image} decodes)",
    )
    table.add_row("storage", f"{cost.output_megabytes:,.1f} MB images, {cost.latent_megabytes:,.1f} MB latents")
    table.add_row("computing time", f"{cost.cost.text}, on devices as here ({cost.device})")
    return table


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the run goes.")] = Path("asyrp-demo"),
    as_json: AsJson = False,
) -> None:
    """Edit 64 bundled cartoon faces with two edits and draw a contact sheet. Needs no network and no GPU."""
    samples = BUNDLED / "avatars" / "samples"
    edits = ["glasses=1", "smile=1"]
    flags = {"source": str(samples), "output": str(output), "edits": edits, "refine": 2, "shard_size": 16}
    raise typer.Exit(run_and_report(load_spec(None, flags, []), as_json))


@app.command("status")
def status_command(
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


def main() -> None:
    """Run the command line. A user's mistake is one sentence and exit code 2, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)])
    logging.getLogger("jobs").setLevel(logging.INFO)
    try:
        app(prog_name="asyrp")
    except UserError as error:
        console.print(f"[bold red]error:[/bold red] {escape(redacted(str(error)))}", soft_wrap=True, highlight=False)
        sys.exit(EXIT_USAGE)
