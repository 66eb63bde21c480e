"""Options made from the fields of a spec."""

from ast import literal_eval
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from jobs.cli.fields import Flag, from_fields
from jobs.cli.options import takes
from jobs.cli.run_options import FLAGS
from jobs.spec.mistakes import model_at
from jobs.spec.run import RunSpec


class Part(BaseModel):
    check: bool = Field(True, description="Look first.")


class Spec(BaseModel):
    source: str = Field(description="Where images are.")
    steps: int = Field(40, description="How many.")
    share: float | None = Field(None, description="How much.")
    size: int | None = Field(None, description="Pixels. [default: the model's]")
    name: str = Field("{stem}_{edit}_x", description="What it is called.")
    codec: Literal["png", "jpeg"] = Field("png", description="Format.")
    edits: Annotated[list[str], "metadata"] = Field(default_factory=list, description="What is done.")
    part: Part = Part()


app = typer.Typer(rich_markup_mode="markdown")


@app.command()
@takes(
    from_fields(
        Spec,
        *map(Flag, ("steps", "share", "size", "name", "codec", "part.check")),
        Flag("source", short="-s", read=str.upper),
        Flag("edits", "edit", "-e"),
    )
)
def command(used: dict[str, Any]) -> None:
    typer.echo(repr(used))


@pytest.mark.parametrize(
    ("typed", "used"),
    [
        ("", {}),
        ("--steps 3 --share 0.5", {"steps": 3, "share": 0.5}),
        ("-e a=1 --edit b=2", {"edits": ["a=1", "b=2"]}),
        ("-s x --codec bmp", {"source": "X", "codec": "bmp"}),
        ("--no-check", {"part.check": False}),
        ("--check", {"part.check": True}),
    ],
)
def test_only_options_that_were_used_have_a_value(typed, used):
    result = CliRunner().invoke(app, typed.split())
    assert result.exit_code == 0 and literal_eval(result.stdout) == used


def test_help_is_the_description_with_the_default_of_the_field():
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout.split())
    for text in (
        "How many. [default: 40]",
        "How much. │",
        "Pixels. [default: the model's] │",
        "What it is called. [default: {stem}_{edit}_x]",
        "png|jpeg Format. [default: png]",
        "Where images are. │",
        "What is done. Repeat for more.",
        "Look first. [default: check]",
    ):
        assert text in shown


def test_every_option_of_run_is_a_described_field_of_its_spec():
    for flag in FLAGS:
        *parents, name = flag.field.split(".")
        assert model_at(RunSpec, parents).model_fields[name].description, flag.field
