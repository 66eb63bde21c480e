"""Fetching one image: what passes is tried again, what does not is not, and nothing hangs."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from pipeline.images import fetch as fetching
from pipeline.images import objects
from pipeline.images.fetch import ATTEMPTS, Changed, fetch
from pipeline.images.source import SourceImage

BODY = b"an image" * 1000


pytestmark = pytest.mark.usefixtures("no_waiting")


class Flaky:
    """Fails a number of times in one way, then gives the body."""

    def __init__(self, failures: int, status: int = 503) -> None:
        self.failures, self.status, self.calls = failures, status, 0

    def __call__(self, request: Request) -> Response:  # noqa: ARG002
        self.calls += 1
        return Response("busy", self.status) if self.calls <= self.failures else Response(BODY)


def image(server: HTTPServer, size: int | None = None) -> SourceImage:
    return SourceImage("x.png", server.url_for("/x.png"), size)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_that_is_busy_for_a_moment_is_asked_again(httpserver, status, caplog):
    handler = Flaky(ATTEMPTS - 1, status)
    httpserver.expect_request("/x.png").respond_with_handler(handler)
    assert fetch(image(httpserver)) == BODY
    assert handler.calls == ATTEMPTS
    assert caplog.text.count("attempt") == ATTEMPTS - 1 and "/x.png" in caplog.text


def test_a_server_that_stays_busy_is_given_up(httpserver):
    handler = Flaky(100)
    httpserver.expect_request("/x.png").respond_with_handler(handler)
    with pytest.raises(OSError, match="503"):
        fetch(image(httpserver))
    assert handler.calls == ATTEMPTS


@pytest.mark.parametrize(
    ("status", "error"), [(404, FileNotFoundError), (403, PermissionError), (410, PermissionError)]
)
def test_what_is_not_there_or_not_allowed_is_asked_for_once(httpserver, status, error):
    handler = Flaky(100, status)
    httpserver.expect_request("/x.png").respond_with_handler(handler)
    with pytest.raises(error):
        fetch(image(httpserver))
    assert handler.calls == 1


class BreaksOff(BaseHTTPRequestHandler):
    """Sends a tenth of the body the first time, and all of it after that."""

    calls = 0

    def do_GET(self) -> None:
        type(self).calls += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: len(BODY) // 10] if self.calls == 1 else BODY)

    def log_message(self, *_: object) -> None:
        pass


def test_a_body_that_breaks_off_is_fetched_again():
    with ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert fetch(SourceImage("x.png", f"http://127.0.0.1:{server.server_port}/x.png")) == BODY
        server.shutdown()
    assert BreaksOff.calls == 2


def test_a_body_that_does_not_come_costs_its_deadline_and_no_more(httpserver, monkeypatch):
    monkeypatch.setattr(objects, "DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(fetching, "ATTEMPTS", 2)

    given_up = threading.Event()

    def withhold(request: Request) -> Response:  # noqa: ARG001
        given_up.wait(60)
        return Response(BODY)

    httpserver.expect_request("/x.png").respond_with_handler(withhold)
    with pytest.raises(TimeoutError):
        fetch(image(httpserver))
    given_up.set()


def test_an_object_that_changed_since_it_was_planned_is_not_taken_for_it(tmp_path):
    (tmp_path / "x.png").write_bytes(b"longer than before")
    with pytest.raises(Changed, match="it had 6 bytes when it was planned and has 18 now"):
        fetch(SourceImage("x.png", str(tmp_path / "x.png"), 6))
