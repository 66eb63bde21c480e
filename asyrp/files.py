"""Writes complete files on the local disk, and keeps a cache of things that are made once per machine."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from asyrp.errors import UserError

CACHE_REMEDY = "set ASYRP_CACHE to a folder that can be written"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, and its folder if there is none. A reader sees the old file until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def cache_root() -> Path:
    """The cache folder: `ASYRP_CACHE`, or else `asyrp` in the user's cache folder (`XDG_CACHE_HOME` or `~/.cache`).

    Raises:
        UserError: if none is given and the user has no home folder.
    """
    if own := os.environ.get("ASYRP_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyrp"
    except RuntimeError as error:
        raise UserError(f"there is no home folder for the cache: {CACHE_REMEDY}") from error


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The path of the file or folder `name` in the cache. `make(path)` makes it if it is not there yet.

    If several processes on a machine ask at once, one makes it and the others wait. The cache only holds complete
    things: `make` writes to a path beside the target, which is then moved to it.

    Raises:
        UserError: if the cache cannot be written to.
    """
    target = cache_root() / name
    try:
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(f"{target}.lock").acquire()
    except OSError as error:
        raise UserError(f"cannot write to the cache {cache_root()}: {error.strerror}: {CACHE_REMEDY}") from error
    with held:
        if not target.exists():
            unfinished = target.with_name(f".{uuid.uuid4().hex}")
            try:
                make(unfinished)
                unfinished.replace(target)
            finally:
                _remove(unfinished)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
