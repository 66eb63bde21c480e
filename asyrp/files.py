"""Files on the local disk, whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, and its folder where it is not there; who reads it meanwhile sees what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def cache_root() -> Path:
    """`ASYRP_CACHE`, else `asyrp` in the user's cache folder (`XDG_CACHE_HOME`, `~/.cache`)."""
    if own := os.environ.get("ASYRP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyrp"


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The path `name` in the cache, which `make(path)` fills the first time it is asked for.

    Of many processes on a machine one makes it and the others wait. What is there is complete: it is made beside
    its place and moved there.
    """
    target = cache_root() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
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
