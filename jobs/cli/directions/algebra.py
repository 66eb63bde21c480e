"""`asyrp directions project, combine, scale, begin, average, compare, preview`:
commands that make a direction from others, or show what it does.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from asyrp.errors import UserError
from asyrp.numbers import number
from jobs.cli.fields import Flag, from_fields
from jobs.cli.options import (
    AsJson,
    DirectionArgument,
    ModelOption,
    OutputFile,
    Source,
    complete_direction,
    direction_file,
    takes,
)
from jobs.display import out, report
from jobs.spec.run import EngineSpec, load_engine

if TYPE_CHECKING:  # torch loads only when a command needs it
    from asyrp.directions.forms import Direction

Name = Annotated[str | None, typer.Option(help="Name of the new direction. [default: the file's]")]
device_and_check = from_fields(EngineSpec, Flag("device"), Flag("check"))


def project(
    direction: DirectionArgument,
    others: Annotated[list[str], typer.Option("--out", help="A direction to project out. Repeat for more.")],
    output: OutputFile,
    jointly: Annotated[bool, typer.Option("--jointly", help="One coefficient for all timesteps together.")] = False,
    name: Name = None,
    model: ModelOption = "avatars",
) -> None:
    """Take other directions out of one. The rest is orthogonal to all of them at every timestep.

    **Example:** asyrp directions project beard --out long_hair --out glasses -o beard_only.safetensors
    """
    from asyrp.directions import algebra

    _save(algebra.project(_load(direction, model), [_load(o, model) for o in others], jointly), output, name)


def combine(
    terms: Annotated[list[str], typer.Argument(help="DIRECTION=WEIGHT, two or more.")],
    output: OutputFile,
    name: Name = None,
    model: ModelOption = "avatars",
) -> None:
    """Make one direction of the weighted sum of several.

    **Example:** asyrp directions combine smile=1 beard=-0.5 -o cheerful.safetensors
    """
    from asyrp.directions import algebra

    _save(algebra.combine([_term(term, model) for term in terms]), output, name)


def scale(
    direction: DirectionArgument,
    factor: Annotated[float, typer.Argument(help="The old strength that is to be the new strength 1.")],
    output: OutputFile,
    name: Name = None,
    model: ModelOption = "avatars",
) -> None:
    """Change what strength 1 means.

    **Example:** asyrp directions scale pc01.safetensors 2.5 -o pc01_strong.safetensors
    """
    from asyrp.directions import algebra

    _save(algebra.scale(_load(direction, model), factor), output, name)


def begin(
    direction: DirectionArgument,
    t_start: Annotated[int, typer.Argument(help="The first timestep, from T down, at which it is to act.")],
    output: OutputFile,
    name: Name = None,
    model: ModelOption = "avatars",
) -> None:
    """Make a direction act later: only from a timestep down, below which its label can be seen in images.

    **Example:** asyrp directions begin beard.safetensors 450 -o late_beard.safetensors
    """
    from asyrp.directions import algebra

    _save(algebra.begin_at(_load(direction, model), t_start), output, name)


@takes(device_and_check)
def average(
    knobs: dict[str, Any],
    direction: DirectionArgument,
    output: OutputFile,
    source: Annotated[
        str | None, typer.Option("--source", "-s", help="Images to average an implicit direction over.")
    ] = None,
    over_time: Annotated[
        bool, typer.Option("--over-time", help="One tensor for all timesteps (delta_h global).")
    ] = False,
    name: Name = None,
    model: ModelOption = "avatars",
) -> None:
    """Average an implicit direction f_t over images, to one tensor per timestep, or tensors over time, to one tensor.

    **Example:** asyrp directions average smiling.safetensors -s faces/ --model celebahq-ddpm -o mean.safetensors
    """
    from asyrp.directions import algebra
    from jobs.learn.average import average_over_images
    from jobs.learn.request import LearnRequest

    path, found = direction_file(direction, model), _load(direction, model)
    if found.info.form == "implicit":
        if source is None:
            raise UserError(f"direction '{found.info.name}' is an implicit function of h: give images with --source")
        found = average_over_images(LearnRequest(source, model, output, engine=load_engine(knobs)), path)
    elif not over_time:
        raise UserError(
            f"direction '{found.info.name}' is one tensor per timestep already: give --over-time for one in all"
        )
    _save(algebra.average_over_time(found) if over_time else found, output, name)


def compare(
    directions: Annotated[
        list[str],
        typer.Argument(help="Two or more direction files, or names of the model's.", autocompletion=complete_direction),
    ],
    model: ModelOption = "avatars",
    as_json: AsJson = False,
) -> None:
    """Show the cosine of every two directions: 1 if they are the same, 0 if they have nothing in common.

    **Example:** asyrp directions compare smile glasses beard long_hair
    """
    from asyrp.directions import algebra

    loaded = [_load(direction, model) for direction in directions]
    values, names = algebra.cosines(loaded).tolist(), [direction.info.name for direction in loaded]
    table = Table("", *names)
    for name, row in zip(names, values, strict=True):
        table.add_row(name, *(f"{value:.2f}" for value in row))
    report({"names": names, "cosines": values}, as_json, lambda: out.print(table))


@takes(device_and_check)
def preview(
    knobs: dict[str, Any],
    direction: DirectionArgument,
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The sheet, a PNG.")],
    rows: Annotated[int, typer.Option(min=1, max=64, help="How many images.")] = 6,
    refine: Annotated[int, typer.Option(min=0, max=10, help="Fixed-point iterations per inversion step.")] = 0,
    model: ModelOption = "avatars",
) -> None:
    """Draw a sheet of what a direction does: a row for each image, a column for each strength from -2 to 2.

    **Example:** asyrp directions preview smile.safetensors -s faces/ -o smile.png
    """
    from jobs.learn.preview import preview as draw

    path = direction_file(direction, model)
    flags = {"model": model, "refine": refine, "engine": knobs}
    draw(path, name=_load(direction, model).info.name, source=source, output=output, rows=rows, flags=flags)
    out.print(str(output), soft_wrap=True, highlight=False)


def _load(direction: str, model: str) -> "Direction":
    from asyrp.directions.forms import load_direction

    return load_direction(direction_file(direction, model))


def _term(term: str, model: str) -> "tuple[Direction, float]":
    name, equals, text = term.rpartition("=")
    weight = number(text) if equals else 1.0
    if weight is None or (equals and not name):
        raise UserError(f"'{term}' is not of the form DIRECTION=WEIGHT, as in smile=1")
    return _load(name if equals else term, model), float(weight)


def _save(direction: "Direction", output: Path, name: str | None) -> None:
    from dataclasses import replace

    from asyrp.directions.forms import save_direction

    named = replace(direction, info=replace(direction.info, name=name or output.stem))
    save_direction(named, output)
    out.print(str(output), soft_wrap=True, highlight=False)
