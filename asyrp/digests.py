"""The SHA-256 by which settings are compared."""

import hashlib
import json
from typing import Any


def json_digest(value: Any) -> str:
    """The SHA-256, in hex, of a value as JSON. The order of keys in mappings does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
