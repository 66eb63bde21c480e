"""Edit images in the semantic latent space (h-space) of frozen diffusion models.

These names are all that a notebook needs:

- `find_model`, `load_model`, `load_direction` open a model and the directions that belong to it
- `parse_edit` reads an edit such as "glasses=1"
- `invert`, `edit` run the diffusion process on a batch of images
- `UserError` is raised for every mistake that the caller can mend

Each name is imported when it is first used, so `import asyrp` alone does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "UserError",
    "edit",
    "find_model",
    "invert",
    "load_direction",
    "load_model",
    "parse_edit",
]

_MODULES = {
    "UserError": "asyrp.errors",
    "edit": "asyrp.notebook",
    "find_model": "asyrp.models.find",
    "invert": "asyrp.notebook",
    "load_direction": "asyrp.directions.forms",
    "load_model": "asyrp.models.load",
    "parse_edit": "asyrp.directions.edits",
}

if TYPE_CHECKING:
    from asyrp.directions.edits import parse_edit
    from asyrp.directions.forms import load_direction
    from asyrp.errors import UserError
    from asyrp.models.find import find_model
    from asyrp.models.load import load_model
    from asyrp.notebook import edit, invert
else:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'asyrp' has no attribute '{name}'")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
