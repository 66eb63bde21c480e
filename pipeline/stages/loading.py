"""Loads the functions of a run's stages. Torch loads with the first call, which an actor makes."""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.stages.settings import MethodSettings


def load_functions(settings: MethodSettings) -> Mapping[str, Callable[..., Any]]:
    """The functions of the stages by name, around a frozen net and directions on the device that the settings name.

    Raises:
        UserError: if the model or a direction is not the one that the run began with, or cannot be loaded.
    """
    from pipeline.stages.functions import Functions

    return Functions(settings).by_name()
