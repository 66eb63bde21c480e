"""A store on the local disk that fails now and then, as object stores do: `faulty://` before an absolute path.

Faults are drawn from a seed, by the number of the call, so a test can be repeated. A fault is one of

- a server error: nothing is done, and an error is raised;
- a lost answer: a write is done, and an error is raised all the same;
- a partial write: the object stays as it was, as a store publishes whole objects only, and an error is raised;
- a late listing: the files that were written last are not in it yet;
- a slow answer.

Conditional creates are honoured. Nothing else is promised, and no call is repeated here, as a driver may.
"""

import itertools
import random
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

LATE_FILES = 3
SLOW_SECONDS = 0.02
READS = ("server error", "slow")
LISTINGS = ("server error", "late listing", "slow")
WRITES = ("server error", "lost answer", "partial write", "slow")


class ServerError(Exception):
    """What a driver raises for a 500; it is no OSError, as with the drivers of some stores."""

    status = 500


class Faults:
    """Says which calls fail. It is shared by all stores of the process."""

    def __init__(self) -> None:
        self.rate, self.seed, self.injected = 0.0, 0, Counter[str]()
        self._certain: int | None = None  # the number of a call that fails whatever the rate
        self._numbers, self._lock = itertools.count(), threading.Lock()

    def draw(self, kinds: tuple[str, ...]) -> str | None:
        """The fault of the next call, if it has one."""
        with self._lock:
            number = next(self._numbers)
            drawn = random.Random(f"{self.seed} {number}")
            if drawn.random() >= self.rate and number != self._certain:
                return None
            kind = drawn.choice(kinds)
            self.injected[kind] += 1
        return kind

    @contextmanager
    def on(self, seed: int, rate: float) -> Iterator["Faults"]:
        """Fail that share of all calls while the block runs, and one of the first twenty in any case."""
        self._certain = random.Random(seed).randrange(20)
        self.seed, self.rate, self._numbers, self.injected = seed, rate, itertools.count(), Counter()
        try:
            yield self
        finally:
            self.rate, self._certain = 0.0, None


FAULTS = Faults()


class FaultyFileSystem(AbstractFileSystem):
    """Objects in files of the local disk. It has no folders of its own and no renames, like an object store."""

    protocol = "faulty"
    root_marker = "/"
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.local = LocalFileSystem(auto_mkdir=True)
        self.late: list[str] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://"))

    def unstrip_protocol(self, name: str) -> str:
        return f"faulty://{self._strip_protocol(name)}"

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        _answer(READS)
        return self.local.cat_file(self._strip_protocol(path), start, end)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        assert mode == "rb", "objects are written whole"
        _answer(READS)
        return self.local.open(path, mode)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        _answer(READS)
        return self.local.info(self._strip_protocol(path))

    def exists(self, path: str, **_: Any) -> bool:
        _answer(READS)
        return self.local.exists(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        fault = _answer(LISTINGS)
        found = self.local.ls(self._strip_protocol(path), detail=True)
        if fault == "late listing":
            found = [entry for entry in found if entry["name"] not in self.late]
        return found if detail else [entry["name"] for entry in found]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        fault = _answer(WRITES)
        if fault == "partial write":
            raise ServerError("the connection broke while the body was sent")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        sent = Path(f"{path}.{uuid.uuid4().hex}.sent")
        sent.write_bytes(value)
        try:
            if mode == "create":
                target.hardlink_to(sent)
        finally:
            if mode == "create":
                sent.unlink()
        if mode != "create":
            sent.replace(target)
        self.late = [*self.late, path][-LATE_FILES:]
        if fault == "lost answer":
            raise ServerError("the answer got lost")

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def rm_file(self, path: str) -> None:
        fault = _answer(WRITES)
        if fault == "partial write":
            raise ServerError("the connection broke")
        Path(self._strip_protocol(path)).unlink()
        if fault == "lost answer":
            raise ServerError("the answer got lost")

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: ARG002
        for each in [path] if isinstance(path, str) else path:
            place = Path(self._strip_protocol(each))
            for file in [place] if place.is_file() else sorted(place.rglob("*")):
                if file.is_file():
                    self.rm_file(str(file))
            if place.is_dir():
                shutil.rmtree(place)


def _answer(kinds: tuple[str, ...]) -> str | None:
    """Answer a call: the fault that the caller is to act out, if any. Raises ServerError."""
    fault = FAULTS.draw(kinds)
    if fault == "server error":
        raise ServerError("500 Internal Server Error")
    if fault == "slow":
        time.sleep(SLOW_SECONDS)
    return fault


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
