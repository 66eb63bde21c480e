"""Paths and URLs as a spec keeps them: a run is the same from every folder, and no credentials are written down."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from asyrp.errors import UserError
from asyrp.models.folder import bundled_names
from pipeline.storage.credentials import refuse_credentials


def absolute_url(url: str) -> str:
    """Local paths are made absolute, so that a run is the same from every folder.

    Raises:
        UserError: if it holds credentials.
    """
    refuse_credentials(url)
    return url if "://" in url else str(Path(url).expanduser().absolute())


def absolute_model(model: str) -> str:
    """A model's local folder or file is named by its absolute path; a short name or hub id stays as it is.

    Raises:
        UserError: if it is a URL that holds credentials.
    """
    return model if model in bundled_names() else absolute_if_there(model)


def absolute_net(name: str) -> str:
    """A net of the user's: a file, or a callable FILE.py:NAME, by its absolute path; MODULE:NAME stays as it is.

    Raises:
        UserError: if it is a URL that holds credentials.
    """
    file, colon, function = name.rpartition(":")
    if file.endswith(".py") and function.isidentifier():
        return f"{absolute_if_there(file)}{colon}{function}"
    return absolute_if_there(name)


def absolute_if_there(name: str) -> str:
    """The absolute path of what lies there; a name of something else stays as it is. Raises as `absolute_url` does."""
    refuse_credentials(name)
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def without_credentials(url: str) -> str:
    """A URL as it is; raises ValueError, which pydantic tells with the field's name, if it holds credentials."""
    try:
        refuse_credentials(url)
    except UserError as error:
        raise ValueError(str(error)) from error
    return url


Url = Annotated[str, AfterValidator(absolute_url)]
Net = Annotated[str, AfterValidator(absolute_net)]


MAX_NAME = 47  # of a RayJob: KubeRay adds to it, and a Kubernetes label holds 63


NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
