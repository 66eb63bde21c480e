"""Reads the metadata of a direction file without its tensors, and without torch."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from asyrp.errors import UserError

FORMAT = "asyrp-direction-1"
VERDICT, CURVE = "verdict", "AUC by timestep"
"""Notes on what has been learned, which a direction derived from it does not have."""


@dataclass(frozen=True)
class DirectionInfo:
    """The metadata of a direction.

    `n_steps` is the number of generation steps for which strength 1 was set. Each step adds A_t delta_h, and A_t hardly
    depends on the step size; so the factor n_steps / n scales delta_h to the same edit in n steps. `t_edit` and
    `t_boost` are suggestions. The direction does not act above `t_start`; with None it acts from T on. `unit` says in
    words what strength 1 is.
    """

    name: str
    form: str
    model_digest: str
    n_steps: Annotated[int, Field(ge=1, le=100_000)]
    t_edit: int | None = None
    t_boost: int | None = None
    unit: str = ""
    found_by: str = ""
    found_on: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    t_start: int | None = None

    @property
    def verdict(self) -> str | None:
        """How far the direction can be trusted, if its learning has said so."""
        return self.notes.get(VERDICT)


INFO = TypeAdapter(DirectionInfo)


def read_info(path: Path) -> DirectionInfo:
    """The metadata of a direction file.

    Raises:
        UserError: if there is no such file, or it is not a direction file.
    """
    if not path.is_file():  # to open a pipe may wait for ever
        raise UserError(f"there is no direction file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is no direction file: its metadata does not say '{FORMAT}'")
    try:
        known = {f.name: json.loads(metadata[f.name]) for f in fields(DirectionInfo) if f.name in metadata}
        return INFO.validate_json(json.dumps(known), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged, its metadata '{where}' is wrong: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, its metadata is not JSON: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a direction file. A run is bound to it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_model(info: DirectionInfo, model_digest: str, model_name: str) -> None:
    """Refuse a direction that belongs to another model.

    Raises:
        UserError: if the digest of the direction's model is not `model_digest`.
    """
    if info.model_digest != model_digest:
        raise UserError(
            f"direction '{info.name}' was found on the model {info.model_digest[:12]}, not on {model_name} "
            f"({model_digest[:12]}): h-space differs from model to model, so learn the direction again on this one"
        )
