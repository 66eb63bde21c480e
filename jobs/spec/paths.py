"""Makes the paths and URLs of a spec absolute, so that a run is the same from every folder, and refuses credentials."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from asyrp.errors import UserError
from asyrp.models.folder import bundled_names
from pipeline.storage.credentials import refuse_credentials
from pipeline.storage.store import EXTRAS, absolute_path, is_local_path


def absolute_url(url: str) -> str:
    """A local path as an absolute path; any other URL as it is.

    Raises:
        UserError: if it is empty, lacks a slash of its scheme, or holds credentials.
    """
    if not url.strip():
        raise UserError("a path or URL is missing: it is empty")
    refuse_credentials(url)
    if torn := ONE_SLASH.match(url):
        raise UserError(f"{url}: a URL begins with {torn[1]}://, and a folder of this name would be given as ./{url}")
    return absolute_path(url) if is_local_path(url) else url


def absolute_model(model: str) -> str:
    """A model's local folder or file by its absolute path; a short name or hub id as it is.

    Raises:
        UserError: if it is empty, or a URL that holds credentials.
    """
    if not model.strip():
        raise UserError("a model is missing: its name is empty")
    return model if model in bundled_names() else absolute_if_there(model)


def absolute_net(name: str) -> str:
    """A net of the user: a file, or a callable FILE.py:NAME, by its absolute path; MODULE:NAME as it is.

    Raises:
        UserError: if it is a URL that holds credentials.
    """
    file, colon, function = name.rpartition(":")
    if file.endswith(".py") and function.isidentifier():
        return f"{absolute_if_there(file)}{colon}{function}"
    return absolute_if_there(name)


def absolute_if_there(name: str) -> str:
    """The absolute path of an existing file or folder; any other name as it is. Raises UserError as `absolute_url`
    does."""
    refuse_credentials(name)
    path = absolute_path(name)
    return path if Path(path).exists() else name


def without_credentials(url: str) -> str:
    """A URL as it is. Raises ValueError, which pydantic reports with the field's name, if it holds credentials."""
    try:
        refuse_credentials(url)
    except UserError as error:
        raise ValueError(str(error)) from error
    return url


ONE_SLASH = re.compile(rf"({'|'.join([*EXTRAS, 'file', 'hf'])}):/(?!/)")
"""A URL of a known scheme with one slash, which would be a local path."""

Url = Annotated[str, AfterValidator(absolute_url)]
Net = Annotated[str, AfterValidator(absolute_net)]

MAX_NAME = 47  # KubeRay makes the name of a RayJob longer, and a Kubernetes label holds 63 characters
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
