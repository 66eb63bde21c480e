"""Looks at this machine before Ray does: where Ray may keep its session, how many files it may open, who answers.

What Ray lacks it reports late, in many lines, or never. Each of these checks ends in one sentence.
"""

import logging
import os
import resource
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyrp.errors import UserError

log = logging.getLogger(__name__)

MAX_SOCKET_PATH = 107
"""Bytes, of the path of a Unix socket."""

SOCKET_BELOW_SESSION = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
FREE_BYTES = 20_000_000
"""Ray's logs of a short run."""

PROBE_SECONDS = 10.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of gRPC says first, with empty settings."""

FRAME_OF_SETTINGS = 4


def check_machine() -> None:
    """Raise UserError if this machine lacks what Ray needs; allow this process as many open files as it may have."""
    if not Path("/proc/self").exists() and Path("/proc").exists():
        raise UserError("Ray reads /proc, and it is empty here: mount it (mount -t proc proc /proc)")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def session_folder() -> str:
    """A folder for Ray's session: RAY_TMPDIR or the temporary folder, or another if that one does not do.

    Raises:
        UserError: if there is none, with what is wrong with each.
    """
    wanted = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    wrong: dict[str, str] = {}
    for folder in dict.fromkeys((wanted, "/tmp", "/var/tmp", "/dev/shm")):
        session = f"{folder.rstrip('/')}/ray"
        reason = _unfit(session)
        if reason is None:
            for other, why in wrong.items():
                log.warning("Ray keeps its session in %s, since %s %s", folder, other, why)
            return session
        wrong[folder] = reason
    reasons = "; ".join(f"{folder} {reason}" for folder, reason in wrong.items())
    raise UserError(
        f"Ray finds no folder for its session: {reasons}: set RAY_TMPDIR to a short path that can be written"
    )


def _unfit(session: str) -> str | None:
    """Why Ray's session cannot be below a folder, as the rest of a sentence about the folder; None if it can."""
    if len(os.fsencode(f"{session}/{SOCKET_BELOW_SESSION}")) > MAX_SOCKET_PATH:
        return f"is too long a path for a socket ({MAX_SOCKET_PATH} bytes)"
    try:
        Path(session).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=session):
            pass
        free = shutil.disk_usage(session).free
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None if free >= FREE_BYTES else f"has only {free / 1e6:.1f} MB left"


@contextmanager
def token_without_home() -> Iterator[None]:
    """Give Ray the token of its session by the environment while it starts, if the home folder cannot keep one."""
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or _can_keep_token():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


def _can_keep_token() -> bool:
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, RuntimeError):  # RuntimeError: this user has no home folder
        return False


def check_address(address: str) -> None:
    """Raise UserError if nobody at HOST:PORT or ray://HOST:PORT speaks as Ray does. Other forms are left to Ray."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or "/" in host:
        return
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"there is no Ray cluster at '{address}': write it as HOST:PORT, as in head:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return
            connection.sendall(HTTP2_PREFACE)
            answer = connection.recv(9)
    except (OSError, UnicodeError) as error:  # UnicodeError: of a host that is no name
        said = getattr(error, "strerror", None) or error
        raise UserError(f"there is no Ray cluster at '{address}' ({said}): start one, or correct --address") from error
    if len(answer) < 4 or answer[3] != FRAME_OF_SETTINGS:
        raise UserError(f"what answers at '{address}' is no Ray cluster: give the port of its head, 6379 by default")
