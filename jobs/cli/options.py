"""Options and arguments that several commands share."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from asyrp.directions.presets import data_sets
from asyrp.errors import UserError
from asyrp.models.find import HUB_MODELS
from asyrp.models.folder import BUNDLED, bundled_names
from jobs.cli.fields import Complete, Flag, from_fields
from jobs.display import out
from jobs.spec.mistakes import validated
from jobs.spec.paths import absolute_model, absolute_url
from jobs.spec.run import MODEL_HELP, EngineSpec, load_engine
from jobs.targets.placement import Placement
from pipeline.stages.models import fetch, fetch_model


def among(values: Callable[[], Iterable[str]]) -> Complete:
    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def _bundled_directions() -> list[str]:
    return sorted(path.stem for path in BUNDLED.glob("*/directions/*.safetensors"))


complete_model = among(lambda: [*bundled_names(), *HUB_MODELS])
complete_direction = among(_bundled_directions)
complete_data_set = among(data_sets)

CLIP_HELP = "avatars (bundled), MODEL/PRETRAINED of open_clip, or a folder."
ENGINE = ("actors", "gpu_share", "batch_size", "device", "address", "check")
"""The fields of EngineSpec that every command that computes has options for."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Root = Annotated[str, typer.Argument(help="The root of a run, on any fsspec URL.")]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP, autocompletion=complete_model)]
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP, autocompletion=complete_model)]
DirectionArgument = Annotated[
    str,
    typer.Argument(
        help="A direction file, or the name of one that comes with the model.", autocompletion=complete_direction
    ),
]
ClipOption = Annotated[
    str | None, typer.Option("--clip", help=f"{CLIP_HELP} [default: ViT-B-16/openai; avatars for the bundled model]")
]
Work = Annotated[str | None, typer.Option(help="Root to keep the sums at, to go on after a stop. Any fsspec URL.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Leave out the model's self-check.")]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="The direction file to write.")]
Source = Annotated[str, typer.Option("--source", "-s", help="Folder or glob of images, on any fsspec URL.")]
TBoost = Annotated[int | None, typer.Option("--t-boost", min=0, max=999, help="Suggested start of fresh noise.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="field=value or engine.field=value. Repeat.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@dataclass(frozen=True)
class Collecting:
    """The options of commands that read many images over the cluster."""

    source: str
    model: str
    work: str | None
    engine: EngineSpec


Made = TypeVar("Made")


def takes(*shared: Callable[..., Any]) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Put the options of each of `shared` before those of a command, or of another set of options.

    `shared` are functions or dataclasses whose parameters are options. What each returns is one of the command's first
    arguments.
    """

    def decorate(command: Callable[..., Made]) -> Callable[..., Made]:
        common = [list(inspect.signature(each).parameters.values()) for each in shared]
        own = list(inspect.signature(command).parameters.values())[len(shared) :]

        def wrapper(**options: Any) -> Made:
            def some(parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
                return {parameter.name: options[parameter.name] for parameter in parameters}

            made = (make(**some(parameters)) for make, parameters in zip(shared, common, strict=True))
            return command(*made, **some(own))

        parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in [*chain(*common), *own]]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorate


@takes(from_fields(EngineSpec, *map(Flag, ENGINE)))
def engine_from_flags(knobs: dict[str, Any]) -> EngineSpec:
    """The speed knobs of commands without a spec."""
    return load_engine(knobs)


@takes(engine_from_flags)
def collecting_from_flags(
    engine: EngineSpec,
    source: Source,
    model: ModelOption = "avatars",
    work: Work = None,
) -> Collecting:
    """What commands that read many images over the cluster need to know."""
    return Collecting(
        source=absolute_url(source),
        model=absolute_model(model),
        work=absolute_url(work) if work else None,
        engine=engine,
    )


@takes(from_fields(Placement, *map(Flag, Placement.model_fields)))
def placement_from_flags(given: dict[str, Any]) -> Placement:
    """The nodes that a job asks for, from the options of commands that write jobs for other systems."""
    return validated(Placement, given)


def direction_file(direction: str, model: str) -> Path:
    """The file of a direction: by name if it comes with the model, else by path or URL."""
    return fetch_model(model).direction_files().get(direction) or fetch(direction)


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises UserError if a value is not among the known ones."""
    if value not in known:
        raise UserError(f"--{name} {value}: give {' or '.join(known)}")


def write_text(path: Path, text: str) -> None:
    """Write a file. Raises UserError if it cannot be written."""
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def print_paths(paths: Sequence[Path | str]) -> None:
    """Print the files that a command wrote to stdout."""
    for path in paths:
        out.print(str(path), soft_wrap=True, highlight=False)
