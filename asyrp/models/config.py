"""Reads the JSON files of a model, which somebody else wrote."""

import json
from pathlib import Path
from typing import Any

from asyrp.errors import UserError

MAX_BYTES = 10_000_000


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most MAX_BYTES.

    Raises:
        UserError: if the file cannot be read, is larger, or holds no JSON object.
    """
    try:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes, no config of a model is")
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return fields
