"""Webhooks and commands that misbehave: each is one sentence, soon, and shows no secret."""

import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from jobs.schedule.notify import notify
from jobs.spec.job import Notifications

FACTS = {"outcome": "failed", "job": "faces"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.schedule.notify.DEADLINE_SECONDS", 1.0)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Give every caller some bytes, one after the other with a pause; the URL."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(parts: list[bytes], pause: float) -> None:
        try:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
        except OSError:  # the caller has gone, or the test is over
            return

    def start(parts: list[bytes], pause: float = 0.0) -> str:
        threading.Thread(target=answer, args=(parts, pause), daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/hush"

    yield start
    server.close()


@pytest.mark.parametrize(
    ("parts", "pause", "sentence"),
    [
        ([b"garbage\r\n\r\n"], 0.0, "is not HTTP"),
        ([b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"], 0.0, "it answered 302, a redirect"),
        ([b"HTTP/1.1 307 Moved\r\nLocation: http://elsewhere/hush\r\n\r\n"], 0.0, "it answered 307, a redirect"),
        ([b"HTTP/1.1 500 hush\r\n\r\n"], 0.0, "it answered 500"),
        ([b""], 0.0, "is not HTTP|cannot be reached"),
        ([b"HTTP/1.1 200 OK\r\n", *[b"X-A: b\r\n"] * 90], 0.1, "not answered within 1 s"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000], 0.0, "is not HTTP"),
        ([b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"\r\n"], 0.0, "is not HTTP"),
    ],
)
def test_a_webhook_that_misbehaves_is_one_sentence_without_its_path(serve, parts, pause, sentence):
    [failure] = notify(Notifications(webhook=serve(parts, pause)), FACTS)
    assert re.search(sentence, failure), failure
    assert failure.startswith("the webhook at http://127.0.0.1 was not told: ") and "hush" not in failure


def test_a_large_answer_is_not_read(serve):
    assert notify(Notifications(webhook=serve([b"HTTP/1.1 200 OK\r\n\r\n", *[b"a" * 1_000_000] * 50])), FACTS) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://host/a hush",
        "http://host:hush/",
        "http://[::1/hush",
        "http:///hush",
        "http://ho\nst/hush",
        "http://é/hush",
    ],
)
def test_a_webhook_that_is_no_url_is_one_sentence_without_its_path(monkeypatch, url):
    monkeypatch.setenv("HOOK", url)
    [failure] = notify(Notifications(webhook="$HOOK"), FACTS)
    assert failure.startswith("the webhook at http://") and "hush" not in failure


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["no-such-program"], "No such file or directory"),
        (["a\0b"], "null byte"),
        (["sh", "-c", "sleep 100"], "not ended within 1 s"),
        (["sh", "-c", "yes >&2 | head -c 100000000 >&2; echo the last >&2; exit 3"], "not ended within 1 s|the last"),
        (
            [sys.executable, "-c", "import sys; sys.stderr.write('x' * 50_000_000 + chr(10) + 'last'); sys.exit(3)"],
            "last",
        ),
        (["sh", "-c", "echo password=hush >&2; exit 3"], r"exit code 3: password=\*\*\*"),
        (["sh", "-c", "kill -9 $$"], "exit code -9"),
    ],
)
def test_a_command_that_misbehaves_is_one_sentence(command, sentence):
    [failure] = notify(Notifications(command=command), FACTS)
    assert re.search(sentence, failure), failure
    assert "hush" not in failure and len(failure) < 3000


def test_a_child_that_holds_the_pipe_is_not_waited_for():
    assert notify(Notifications(command=["sh", "-c", "sleep 100 & exit 0"]), FACTS) == []


def test_a_command_that_does_not_read_is_told():
    assert notify(Notifications(command=["true"]), {**FACTS, "message": "x" * 1_000_000}) == []
