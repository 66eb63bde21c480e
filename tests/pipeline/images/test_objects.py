"""Limits on what is read: bytes before they are read and while they come, and no pipe is opened."""

import gzip
import os
import threading
import tracemalloc
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.images import objects
from pipeline.images.fetch import ATTEMPTS, Changed, fetch
from pipeline.images.objects import Hung, TooLarge, within_deadline
from pipeline.images.source import MAX_IMAGE_BYTES, SourceImage
from pipeline.storage.store import NotRegular
from tests.support.servers import moto, reached

pytestmark = pytest.mark.usefixtures("no_waiting")

MOST = 1_000_000


@pytest.fixture
def answer():
    """Answers HTTP by a function that gets the handler; it counts the requests."""
    servers = []

    def start(respond) -> str:
        class Handler(BaseHTTPRequestHandler):
            calls = 0

            def do_GET(self) -> None:
                type(self).calls += 1
                with suppress(OSError):  # the client may have gone
                    respond(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handler = Handler
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def at(server, **fields) -> SourceImage:
    return SourceImage("x.png", f"http://127.0.0.1:{server.server_port}/x.png", **fields)


def peak_memory(act) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(image: SourceImage) -> None:
    with pytest.raises(TooLarge, match="and the limit is 1,000,000: give a larger max_image_bytes"):
        fetch(image, max_bytes=MOST)


def send(handler, body: bytes, *headers: tuple[str, str], status: int = 200) -> None:
    handler.send_response(status)
    for header in headers:
        handler.send_header(*header)
    handler.end_headers()
    handler.wfile.write(body)


def test_a_body_without_an_end_is_given_up_at_the_limit(answer):
    def endless(handler) -> None:
        send(handler, b"")
        while True:
            handler.wfile.write(bytes(100_000))

    server = answer(endless)
    assert peak_memory(lambda: refused(at(server))) < 10 * MOST
    assert server.handler.calls == 1


def test_a_body_that_says_that_it_is_too_large_is_not_read(answer):
    server = answer(lambda handler: send(handler, b"", ("Content-Length", str(10**12))))
    refused(at(server))


def test_an_image_is_asked_for_as_it_is_and_a_packed_one_cannot_grow_over_the_limit(answer):
    asked, body = [], gzip.compress(bytes(200_000_000), 9)

    def packed(handler) -> None:
        asked.append(handler.headers["Accept-Encoding"])
        send(handler, body, ("Content-Encoding", "gzip"), ("Content-Length", str(len(body))))

    server = answer(packed)
    assert peak_memory(lambda: refused(at(server))) < 100_000_000
    assert asked == ["identity"]


@pytest.mark.parametrize(
    "line", [b"garbage\r\n\r\n", b"HTTP/9.9 what\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]
)
def test_an_answer_that_is_no_http_is_asked_for_again(answer, line):
    server = answer(lambda handler: handler.wfile.write(line))
    with pytest.raises(OSError):
        fetch(at(server))
    assert server.handler.calls >= ATTEMPTS


def test_a_part_is_refused_from_a_server_that_sends_the_whole(answer):
    server = answer(lambda handler: send(handler, bytes(10_000)))
    image = SourceImage("x", f"http://127.0.0.1:{server.server_port}/x.tar", size=5, member="x", offset=100)
    with pytest.raises(PermissionError, match="the server does not send parts of a file"):
        fetch(image)


def test_a_part_is_read_from_a_server_that_sends_parts(answer):
    def part(handler) -> None:
        start, end = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
        send(handler, bytes(range(256))[start : end + 1], status=206)

    server = answer(part)
    image = SourceImage("x", f"http://127.0.0.1:{server.server_port}/x.tar", size=5, member="x", offset=100)
    assert fetch(image) == bytes(range(100, 105))


def test_a_size_that_was_planned_is_refused_before_anything_is_read(tmp_path):
    refused(SourceImage("x.png", str(tmp_path / "not there.png"), size=10**10))


def test_a_sparse_file_of_ten_gigabytes_is_refused_by_its_size(tmp_path):
    with (tmp_path / "x.jpg").open("wb") as file:
        file.truncate(10**10)
    assert peak_memory(lambda: refused(SourceImage("x.jpg", str(tmp_path / "x.jpg")))) < MOST
    with pytest.raises(TooLarge):
        fetch(SourceImage("x.jpg", str(tmp_path / "x.jpg"), size=MAX_IMAGE_BYTES + 1))


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    for path in ("/dev/zero", tmp_path / "pipe.png", tmp_path / "link.png", tmp_path):
        with pytest.raises(NotRegular, match="is not a regular file"):
            fetch(SourceImage("x.png", str(path)))
    with pytest.raises(NotRegular):
        fetch(SourceImage("x", str(tmp_path / "pipe.png"), member="image", offset=0))


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr("pipeline.storage.store.check_regular", lambda path: None)  # noqa: ARG005  # it was a file then
    with pytest.raises(NotRegular):
        fetch(SourceImage("x.png", str(tmp_path / "pipe.png")))


def test_a_file_that_says_it_is_empty_and_is_not_is_an_error_of_its_row():
    with pytest.raises(OSError, match="has grown while it was read"):
        fetch(SourceImage("x", "/proc/self/status"))


def test_a_read_that_hangs_costs_its_deadline_once(monkeypatch):
    monkeypatch.setattr(objects, "DEADLINE_SECONDS", 0.2)
    free, calls = threading.Event(), []

    class Hangs(MemoryFileSystem):
        protocol = "hangs"

        def info(self, path, **_):
            calls.append(path)
            free.wait(60)

    fsspec.register_implementation("hangs", Hangs, clobber=True)
    with pytest.raises(Hung, match=r"the filesystem has not answered for 0.2 s"):
        fetch(SourceImage("x.png", "hangs://x.png"))
    assert len(calls) == 1
    free.set()


def test_an_error_within_the_deadline_is_the_error():
    def fails() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        within_deadline(fails)


def test_objects_of_a_store_are_read_up_to_the_limit_and_one_byte_more(tmp_path):
    with moto(tmp_path, tmp_path) as server, reached(server):
        fs = fsspec.filesystem("s3", use_listings_cache=False)
        for name, size in {"empty": 0, "small": 10, "large": MOST + 1}.items():
            fs.pipe_file(f"bucket/{name}.png", bytes(size))
        assert fetch(SourceImage("x", "s3://bucket/empty.png")) == b""
        assert fetch(SourceImage("x", "s3://bucket/empty.png", size=0)) == b""
        for size in (None, 10):
            assert fetch(SourceImage("x", "s3://bucket/small.png", size=size)) == bytes(10)
        refused(SourceImage("x", "s3://bucket/large.png"))
        for planned, now in {0: "10", 9: "more", 5: "more", 11: "10"}.items():
            with pytest.raises(Changed, match=f"planned and has {now} now"):
                fetch(SourceImage("x", "s3://bucket/small.png", size=planned))


def test_a_blocking_filesystem_is_held_to_the_limit_too():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/limits/x.png", bytes(MOST + 1))
    refused(SourceImage("x", "memory://limits/x.png"))
    assert len(fetch(SourceImage("x", "memory://limits/x.png"))) == MOST + 1
