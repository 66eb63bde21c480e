"""Models and direction files named by anything: fetched to this machine once, whoever asks for them."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from asyrp.digests import json_digest
from asyrp.errors import UserError
from asyrp.files import made_once
from asyrp.measures.names import NET_GRAMMAR, Judges
from asyrp.models.find import find_model
from asyrp.models.folder import BUNDLED, PICKLED_WEIGHTS, WEIGHTS, ModelFolder, bundled_names
from pipeline.images.codec import ImageRefused
from pipeline.images.fetch import with_retries
from pipeline.images.read import read_image
from pipeline.sources.listing import list_images
from pipeline.storage.credentials import redacted
from pipeline.storage.store import open_filesystem, os_errors

log = logging.getLogger(__name__)

MODEL_FILES = (
    "*.json", "segmenter.pt", "unet/config.json", "scheduler/*.json", "directions/*.safetensors", "samples/*",
    *(f"{folder}{weights}" for folder in ("", "unet/") for weights in (WEIGHTS, PICKLED_WEIGHTS)),
)  # fmt: skip
CHECK_IMAGES = 4
STAND_IN_SIDE = 32


def fetch_model(source: str) -> ModelFolder:
    """The folder of a model named by whatever names a model: see `asyrp.models.find.find`, or any fsspec URL.

    Raises:
        UserError: if there is no such model, or it cannot be fetched or converted.
    """
    if source in bundled_names() or "://" not in source:
        return find_model(source)
    return replace(find_model(str(fetch(source))), name=source)


def direction_path(folder: ModelFolder, name: str, url: str | None) -> Path:
    """The file of a direction: at its own URL, or the one of this name that comes with the model."""
    return fetch(url) if url else folder.direction_files()[name]


def fetched_judges(judges: Judges) -> Judges:
    """The nets of the user's with files in place of URLs, each fetched once per machine."""

    def local(name: str | None) -> str | None:
        return str(fetch(name)) if name and "://" in name else name

    return replace(
        judges,
        identity=local(judges.identity),
        segmenter=local(judges.segmenter),
        classifier=local(judges.classifier),
    )


def net_digest(name: str, what: str) -> str:
    """What identifies a net that a user names (see `load_net`): the SHA-256 of its file, or the name of its callable.

    Raises:
        UserError: if there is no such file.
    """
    file, _, function = name.rpartition(":")
    is_callable = bool(file) and function.isidentifier()
    if is_callable and not file.endswith(".py"):
        return name
    path = Path(file) if is_callable else fetch(name)
    if not path.is_file():
        raise UserError(f"there is no {what} {name}: give {NET_GRAMMAR}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(url: str) -> Path:
    """A file, or the folder of a model, at any URL as a local path. Fetched once per machine and version.

    Raises:
        UserError: if there is nothing there, or it cannot be read.
    """
    fs, path = open_filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return Path(path)

    def versions() -> dict[str, str]:
        with os_errors():
            return _versions(fs, path)

    def get(target: Path) -> None:
        with os_errors():
            _get(fs, path, files, target)

    try:
        files = with_retries(url, versions)
        version = json_digest([url, files])
        name = f"fetched/{version}/{PurePosixPath(path).name}"
        return made_once(name, lambda target: with_retries(url, lambda: get(target)))
    except FileNotFoundError:
        raise UserError(f"there is nothing at {url}") from None
    except OSError as error:
        raise UserError(f"cannot fetch {url}: {error}") from error


def _versions(fs: AbstractFileSystem, path: str) -> dict[str, str]:
    """What tells this version of each file from a later one, by name relative to `path` ('' for a file)."""
    fs.invalidate_cache()
    if _is_file(fs, path):
        return {"": fs.ukey(path)}
    root = path.rstrip("/") + "/"
    files = {name.removeprefix(root): name for name in fs.find(path)}
    wanted = {name: file for name, file in files.items() if any(_matches(name, pattern) for pattern in MODEL_FILES)}
    if not wanted:
        raise FileNotFoundError(path)
    return {name: fs.ukey(file) for name, file in wanted.items()}


def _is_file(fs: AbstractFileSystem, path: str) -> bool:
    """Raises FileNotFoundError if there is nothing, or what the store answers instead."""
    try:
        return fs.info(path)["type"] == "file"
    except FileNotFoundError as error:
        if "http" in fs.protocol and error.__cause__ is not None:
            raise error.__cause__ from None  # whatever goes wrong, fsspec says "not found" first
        raise


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and PurePosixPath(name).match(pattern)


def _get(fs: AbstractFileSystem, path: str, files: Mapping[str, str], target: Path) -> None:
    for name in files:
        local = target / name if name else target
        local.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{path.rstrip('/')}/{name}" if name else path, str(local))


def check_images(folder: ModelFolder, images: str | None = None) -> tuple[NDArray[np.float32], bool]:
    """Images [B, 3, S, S] in [-1, 1] for the self-check, and whether they are of the model's own domain.

    They are the first readable ones of the source `images`, else of the model's samples. For a model without samples
    the bundled faces stand in, side by side where they are smaller than its images.

    Raises:
        UserError: if `images` has no readable image.
    """
    own = images or (str(folder.samples) if folder.samples else None)
    if own is not None:
        return np.stack(_first_images(own, CHECK_IMAGES, folder.image_size)), True
    faces = np.stack(_first_images(str(BUNDLED / "avatars" / "samples"), 64, STAND_IN_SIDE))
    across, size = -(-folder.image_size // STAND_IN_SIDE), folder.image_size
    mosaics = [_mosaic(np.roll(faces, -16 * index, axis=0), across) for index in range(CHECK_IMAGES)]
    return np.stack(mosaics)[..., :size, :size], False


def _first_images(source: str, count: int, size: int) -> list[NDArray[np.float32]]:
    found: list[NDArray[np.float32]] = []
    for image in list_images(source):
        try:
            found.append(read_image(image, size, "crop").pixels)
        except ImageRefused as error:
            log.warning("left out of the self-check: %s: %s", redacted(image.uri), redacted(str(error)))
        if len(found) == count:
            break
    if not found:
        raise UserError(f"there is no readable image below {source} to check the model with")
    return found


def _mosaic(faces: NDArray[np.float32], across: int) -> NDArray[np.float32]:
    """`across` times `across` faces [N, 3, s, s] as one image [3, across s, across s], over and over."""
    chosen = np.resize(faces, (across * across, *faces.shape[1:]))
    rows = chosen.reshape(across, across, *faces.shape[1:])
    return rows.transpose(2, 0, 3, 1, 4).reshape(faces.shape[1], across * faces.shape[2], across * faces.shape[3])
