"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.display import MODEL_HELP
from jobs.spec import EngineSpec, load_engine
from pipeline.model_source import fetch, find_model

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Leave out the model's self-check.")]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="The direction file to write.")]
Source = Annotated[str, typer.Option("--source", "-s", help="Folder or glob of images, on any fsspec URL.")]
NSteps = Annotated[int, typer.Option("--n-steps", min=2, max=1000, help="Generation steps of strength 1.")]
TEdit = Annotated[int, typer.Option("--t-edit", min=0, max=999, help="Suggested last edited timestep.")]
TBoost = Annotated[int | None, typer.Option("--t-boost", min=0, max=999, help="Suggested start of fresh noise.")]
Work = Annotated[str | None, typer.Option("--work", help="Root to keep the sums at, to go on after a stop. Any URL.")]
Actors = Annotated[int | None, typer.Option("--actors", help="Ray actors. [default: one a GPU, else one]")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images per network call. [default: 16 on GPU, 8]")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Address = Annotated[str | None, typer.Option("--address", help="A Ray cluster to join. [default: start one here]")]


def direction_file(direction: str, model: str) -> Path:
    """The file of a direction that comes with the model, by its name, or of any other by its path or URL."""
    return find_model(model).direction_files().get(direction) or fetch(direction)


def engine_of(
    actors: int | None, batch_size: int | None, device: str, address: str | None, no_check: bool
) -> EngineSpec:
    """The engine's knobs as these options give them."""
    knobs = {"actors": actors, "batch_size": batch_size, "device": device, "address": address, "check": not no_check}
    return load_engine(knobs)
