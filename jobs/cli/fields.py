"""Makes options from the fields of a spec: their names, types, helps and defaults stand there."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.spec.mistakes import model_at

Complete = Callable[[str], list[str]]
"""Gives the values that begin with what was typed so far."""


@dataclass(frozen=True)
class Flag:
    """The option for a field of a spec, with what the field does not say.

    `field` is the path of the field, as in "engine.actors". The option is called like the field, or `name` if it is
    given. `read` turns what was typed into what the spec takes.
    """

    field: str
    name: str = ""
    short: str = ""
    metavar: str | None = None
    read: Callable[[Any], Any] = lambda typed: typed
    complete: Complete | None = None

    @property
    def parameter(self) -> str:
        return self.name or self.field.rpartition(".")[2]


def from_fields(spec: type[BaseModel], *flags: Flag) -> Callable[..., dict[str, Any]]:
    """A set of options for `takes`. It gives the values of the options that were used, by the path of their field."""

    def used(**typed: Any) -> dict[str, Any]:
        return {
            flag.field: flag.read(typed[flag.parameter]) for flag in flags if typed[flag.parameter] not in (None, [])
        }

    used.__signature__ = inspect.Signature([_parameter(flag, _field(spec, flag)) for flag in flags])  # type: ignore[attr-defined]
    return used


def _field(spec: type[BaseModel], flag: Flag) -> FieldInfo:
    *parents, name = flag.field.split(".")
    return model_at(spec, parents).model_fields[name]


def _parameter(flag: Flag, field: FieldInfo) -> inspect.Parameter:
    """The option as Typer reads it. Its value is None where it is not used, so that a config is not overridden."""
    kind, name = _kind(field.annotation), flag.parameter.replace("_", "-")
    names = [f"--{name}/--no-{name}" if kind is bool else f"--{name}", *filter(None, [flag.short])]
    literal = next((kind for kind in _kinds(field.annotation) if get_origin(kind) is Literal), None)
    choices = "|".join(get_args(literal)) if literal else None
    option = typer.Option(
        *names, help=_help(field, name), metavar=flag.metavar or choices, autocompletion=flag.complete
    )
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(annotation: Any) -> Any:
    """The type of an option: a number, a switch, or a list of texts. Any other value is a text that the spec reads."""
    if get_origin(annotation) in (list, dict):
        return list[str]
    return next((kind for kind in (int, float, bool) if kind in _kinds(annotation)), str)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """A type, and those of which it is a union."""
    return (annotation, *get_args(annotation))


def _help(field: FieldInfo, name: str) -> str:
    """The field's description and default. A description says itself what the default is if it must be computed."""
    text = field.description or ""
    if _kind(field.annotation) == list[str]:
        return f"{text} Repeat for more."
    if field.is_required() or "[default:" in text or field.default is None:
        return text
    default = name if field.default is True else str(field.default).replace("_", "\\_")  # help is Markdown
    return f"{text} [default: {default}]"
