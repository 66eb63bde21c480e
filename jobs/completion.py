"""What the shell can be told of the values of arguments: only what needs no torch and no network."""

from collections.abc import Callable, Iterable

from asyrp.directions.presets import data_sets
from asyrp.models.find import HUB_MODELS
from asyrp.models.folder import BUNDLED, bundled_names

Complete = Callable[[str], list[str]]
"""The values that begin with what was typed so far."""


def among(values: Callable[[], Iterable[str]]) -> Complete:
    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def _bundled_directions() -> list[str]:
    return sorted(path.stem for path in BUNDLED.glob("*/directions/*.safetensors"))


complete_model = among(lambda: [*bundled_names(), *HUB_MODELS])
complete_direction = among(_bundled_directions)
complete_data_set = among(data_sets)
