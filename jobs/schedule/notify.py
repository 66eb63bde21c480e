"""Tells a webhook or a command how a tick ended."""

import json
import logging
import os
import subprocess
import urllib.error
import urllib.request
from typing import Any

from jobs.spec.job import Notifications
from pipeline.storage.credentials import redacted

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 20.0


def notify(notifications: Notifications, facts: dict[str, Any]) -> list[str]:
    """Sends the facts of a tick to the webhook and the command, if they want to know of its outcome. It never raises:
    each failure is logged and given back as a sentence."""
    if facts["outcome"] not in notifications.when:
        return []
    data = json.dumps(facts).encode()
    failures = []
    if notifications.webhook and (failure := _post(notifications.webhook, data)):
        failures.append(f"the webhook was not told: {failure}")
    if notifications.command and (failure := _call(notifications.command, data)):
        failures.append(f"the command {notifications.command[0]} was not told: {failure}")
    for failure in failures:
        log.warning("%s", failure)
    return failures


def _post(webhook: str, data: bytes) -> str | None:
    """Sends data to a webhook. Gives the reason if that fails, else None."""
    url = os.environ.get(webhook.removeprefix("$"), "") if webhook.startswith("$") else webhook
    if not url.startswith(("http://", "https://")):
        return f"{webhook} holds no http(s) URL in this environment"
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            return None
    except (OSError, ValueError) as error:
        return redacted(str(error))


def _call(command: list[str], data: bytes) -> str | None:
    """Sends data to a command. Gives the reason if that fails, else None."""
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"exit code {done.returncode}" + (f": {said}" if said else "")
