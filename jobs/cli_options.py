"""Options and arguments that several commands share."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.display import MODEL_HELP
from pipeline.model_source import fetch, find_model

CLIP_HELP = "avatars (bundled), MODEL/PRETRAINED of open_clip, or a folder."

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Leave out the model's self-check.")]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="The direction file to write.")]
Source = Annotated[str, typer.Option("--source", "-s", help="Folder or glob of images, on any fsspec URL.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def takes(shared: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `shared` before its own, and what that makes of them as first argument.

    So the options that commands have in common, and their meaning, stand in one place.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        common = list(inspect.signature(shared).parameters.values())
        own = list(inspect.signature(command).parameters.values())[1:]

        def wrapper(**options: Any) -> None:
            mine = {parameter.name: options.pop(parameter.name) for parameter in own}
            command(shared(**options), **mine)

        parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in common + own]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorate


def direction_file(direction: str, model: str) -> Path:
    """The file of a direction that comes with the model, by its name, or of any other by its path or URL."""
    return find_model(model).direction_files().get(direction) or fetch(direction)
