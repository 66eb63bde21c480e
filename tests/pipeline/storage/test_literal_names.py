"""Names that somebody else chose are literal: what a filesystem lists is opened again, and no sign in it means more."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer

from asyrp.errors import UserError
from jobs.spec.paths import absolute_url
from pipeline.images.fetch import fetch
from pipeline.images.source import SourceImage
from pipeline.storage.store import open_filesystem
from tests.support.servers import moto, reached

ODD = [
    "a::b",
    "s3::x",
    "simplecache::a",
    "out [1]",
    "a*b",
    "what?",
    "50%",
    "%2e%2e",
    "#1",
    "~x",
    "-rf",
    "a\\b",
    "{key}",
]
SIGNS = st.sampled_from([*"ab:/%#?~*[]{}\\'\" .-_!&=+;@$|<>éñ日\u0301😀", "::", "://", "file://", "%2F", "?versionId="])
TEXTS = st.lists(SIGNS, min_size=1, max_size=12).map("".join) | st.text(
    st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30
)
FILE_NAMES = TEXTS.map(lambda text: text.replace("/", "_")).filter(lambda name: name not in (".", ".."))


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("s3")
    with moto(folder, folder) as server, reached(server):
        yield


def opened_again(fs: AbstractFileSystem, path: str) -> None:
    again, same = open_filesystem(fs.unstrip_protocol(path))
    assert (type(again), same) == (type(fs), path)


@settings(deadline=None)
@given(st.lists(FILE_NAMES, min_size=1, max_size=4))
def test_every_local_path_is_opened_again_by_its_uri(names):
    fs, path = open_filesystem("/" + "/".join(names))
    assert path == "/" + "/".join(names)
    opened_again(fs, path)


@settings(deadline=None)
@given(TEXTS.filter(lambda key: not key.endswith("/")))
def test_every_key_of_an_object_store_is_opened_again_by_its_uri(key):
    for root in ("s3://bucket", "memory://root", "memory://r::t"):
        fs, path = open_filesystem(f"{root}/{key}")
        opened_again(fs, path)
        assert path.lstrip("/") == f"{root.partition('://')[2]}/{key}"


@settings(deadline=None)
@given(TEXTS)
def test_every_http_url_is_opened_again_by_its_uri(text):
    fs, path = open_filesystem(f"http://127.0.0.1/{text}")
    opened_again(fs, path)
    assert open_filesystem(path)[1] == path, "what is quoted is not quoted again"


@pytest.mark.usefixtures("s3_server")
@settings(max_examples=25, deadline=None)
@given(FILE_NAMES)
def test_what_s3_lists_is_read_by_its_uri(name):
    if "?versionId=" in name:  # s3fs reads it as a version
        return
    fs, _ = open_filesystem("s3://bucket")
    folder = f"bucket/{uuid.uuid4().hex}"
    fs.pipe_file(f"{folder}/{name}", name.encode())
    [path] = fs.ls(folder, detail=False)
    assert fetch(SourceImage(name, fs.unstrip_protocol(path))) == name.encode()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILE_NAMES)
def test_what_a_folder_lists_is_read_by_its_uri(tmp_path, name):
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    if len(name.encode()) > 255:
        return
    (folder / name).write_bytes(b"x")
    fs, root = open_filesystem(str(folder))
    [path] = fs.ls(root, detail=False)
    assert path == f"{folder}/{name}"
    assert fetch(SourceImage(name, fs.unstrip_protocol(path))) == b"x"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("/a%2Fb.png", "/a%2Fb.png"),
        ("/a b.png", "/a%20b.png"),
        ("/a%20b.png", "/a%20b.png"),
        ("/%C3%A9.png", "/%C3%A9.png"),
        ("/é.png", "/%C3%A9.png"),
        ("/100%.png", "/100%25.png"),
        ("/a::b.png", "/a::b.png"),
        ("/a+b.png?sig=x%2By%20z", "/a+b.png?sig=x%2By%20z"),
        ("/{a}|b.png", "/%7Ba%7D%7Cb.png"),
    ],
)
def test_an_http_url_is_sent_as_it_is_written(httpserver: HTTPServer, asked, sent):
    httpserver.expect_request(re.compile(".*")).respond_with_data(b"x")
    assert fetch(SourceImage("k", httpserver.url_for("") + asked.lstrip("/"))) == b"x"
    request, _ = httpserver.log[-1]
    assert request.environ["REQUEST_URI"] == sent


def test_a_chain_is_one_where_the_user_gave_it():
    fs, path = open_filesystem("simplecache::memory://x/a.png")
    assert path == "/x/a.png" and "cache" in type(fs).__name__.lower()
    fs, path = open_filesystem("file:///data/x::memory://y.png")
    assert path == "/data/x::memory://y.png"


@pytest.mark.parametrize("name", ODD)
def test_a_relative_path_is_literal(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert open_filesystem(name)[1] == absolute_url(name) == str(tmp_path / name)


def test_a_tilde_alone_is_the_home_folder():
    assert open_filesystem("~/x")[1] == absolute_url("~/x") == str(Path.home() / "x")


@pytest.mark.parametrize("name", ["caf\udce9", "a\0b", "s3://bucket/a\0b"])
def test_a_name_that_cannot_be_recorded_is_one_sentence(name):
    with pytest.raises(UserError, match="not UTF-8"):
        open_filesystem(name)
