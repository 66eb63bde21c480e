"""Tells a webhook or a command how a tick ended.

Whatever they do, the tick goes on after `DEADLINE_SECONDS` at the latest. A webhook's path is often its secret, so that
no message shows more than its scheme and host.
"""

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, InvalidURL
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from jobs.spec.job import Notifications
from pipeline.storage.credentials import only_host, redacted

log = logging.getLogger(__name__)

DEADLINE_SECONDS = 20.0
TAIL_BYTES = 2000
"""How much is kept of what a command says."""


def notify(notifications: Notifications, facts: dict[str, Any]) -> list[str]:
    """Sends the facts of a tick to the webhook and the command, if they want to know of its outcome. It never raises:
    each failure is logged and given back as a sentence."""
    if facts["outcome"] not in notifications.when:
        return []
    data = json.dumps(facts, default=str).encode()
    failures = []
    if notifications.webhook and (failure := _tell_webhook(notifications.webhook, data)):
        failures.append(failure)
    if notifications.command and (failure := _guarded(lambda: _call(notifications.command or [], data))):
        failures.append(f"the command {notifications.command[0]!r} was not told: {redacted(failure)}")
    for failure in failures:
        log.warning("%s", failure)
    return failures


def _tell_webhook(webhook: str, data: bytes) -> str | None:
    """Sends data to a webhook. Gives a sentence if that fails, else None."""
    url = os.environ.get(webhook.removeprefix("$"), "") if webhook.startswith("$") else webhook
    if not url.startswith(("http://", "https://")):
        return f"the webhook was not told: {webhook} holds no http(s) URL in this environment"
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(_guarded(lambda: _post(url, data))), daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    failure = answers[0] if answers else f"it has not answered within {DEADLINE_SECONDS:.0f} s"
    return f"the webhook at {only_host(url)} was not told: {failure}" if failure else None


def _guarded(tell: Callable[[], str | None]) -> str | None:
    """What `tell` gives. Every error of it is a failure to tell, and never the tick's."""
    try:
        return tell()
    except Exception as error:
        log.debug("a notification has failed", exc_info=True)
        return f"it failed ({type(error).__name__})"


class _NoRedirect(HTTPRedirectHandler):
    """Lets a redirect be an error: it could lead to another host, or to a file."""

    def redirect_request(self, *request: Any, **more: Any) -> None:  # noqa: ARG002
        return None


def _post(url: str, data: bytes) -> str | None:
    """Sends data to a URL. Gives the reason if that fails, else None. The reason never shows the URL."""
    try:
        request = Request(url, data, {"Content-Type": "application/json"})
        with build_opener(_NoRedirect).open(request, timeout=DEADLINE_SECONDS):
            return None
    except HTTPError as error:
        return f"it answered {error.code}" + (", a redirect: give the URL it leads to" if error.code < 400 else "")
    except (InvalidURL, ValueError):
        return "its URL is not valid: percent-encode what is no letter, digit or sign of a URL"
    except HTTPException as error:
        return f"what it answered is not HTTP ({type(error).__name__})"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"it cannot be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"


def _call(command: list[str], data: bytes) -> str | None:
    """Runs a command with data on its standard input. Gives the reason if that fails, else None."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        return str(getattr(error, "strerror", None) or error)
    assert process.stdin is not None and process.stderr is not None
    said = bytearray()
    threads = [
        threading.Thread(target=_feed, args=(process.stdin, data), daemon=True),
        threading.Thread(target=_keep_tail, args=(process.stderr, said), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        code = process.wait(DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it has not ended within {DEADLINE_SECONDS:.0f} s"
    finally:
        with suppress(ProcessLookupError):  # what it has started ends with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    threads[1].join(1.0)
    last = bytes(said).decode(errors="replace").strip().rpartition("\n")[2]
    return (f"exit code {code}" + (f": {last}" if last else "")) if code else None


def _feed(stream: IO[bytes], data: bytes) -> None:
    with suppress(OSError), stream:  # it may end without reading
        stream.write(data)


def _keep_tail(stream: IO[bytes], tail: bytearray) -> None:
    with stream:
        while part := stream.read1(65536):  # type: ignore[attr-defined]
            tail += part
            del tail[:-TAIL_BYTES]
