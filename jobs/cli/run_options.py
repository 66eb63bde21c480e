"""The options that `asyrp run` and `asyrp plan` share, and the spec that they make."""

from pathlib import Path
from typing import Annotated, Any

import typer

from asyrp.directions.info import read_info
from asyrp.measures.names import METRICS
from jobs.cli.options import complete_direction, complete_model
from jobs.display import MODEL_HELP
from jobs.spec.run import RunSpec, load_spec

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
