"""Turns pydantic's errors into sentences: which field is wrong, what is wrong with it, and what to write instead."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, RootModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from asyrp.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

CHECKED = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
"""How the models of specs are checked. An unknown field is a mistake, and so is a number that is none."""


def alternative(name: str) -> Tag:
    """The tag of one alternative of a union. Its brackets tell it from a field where an error says its place."""
    return Tag(f"({name})")


def validated(model: type[Model], data: object, config: Path | None = None) -> Model:
    """The model that `data` describes.

    Raises:
        UserError: with one sentence on the first mistake, after the name of the `config` file if there is one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        prefix = f"{config}: " if config else ""
        raise UserError(prefix + _sentence(error.errors()[0], model)) from None


def path_of(error: ErrorDetails) -> tuple[int | str, ...]:
    """Where in a document an error is: pydantic's location without the tags of alternatives."""
    return tuple(part for part in error["loc"] if not str(part).startswith("("))


def explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    """One sentence on an error in a document that `model` describes. For an unknown field it names the nearest one."""
    path = path_of(error)
    where = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        *parents, name = path
        fields = model_at(model, parents).model_fields
        near = difflib.get_close_matches(str(name), fields, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(fields)}"
        return f"unknown field '{where}': {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict):  # of fields that do not go together
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (it is {error['input']!r})"


def model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The model of a part of a document; parts of the path that are no fields, such as indices, are passed over."""
    for part in path:
        if part in model.model_fields:
            model = next(_models_in(model.model_fields[str(part)].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        yield from _models_in(annotation.model_fields["root"].annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    if error["type"] == "missing":
        where = ".".join(map(str, path_of(error)))
        return f"{where} is missing: give --{where} or '{where}:' in the config"
    return explain(error, model)
