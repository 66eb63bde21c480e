"""What Ray needs of a machine is looked at before Ray is started."""

import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from asyrp.errors import UserError
from pipeline.engine.machine import check_address, check_machine, session_folder, token_without_home


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


def test_ray_keeps_its_session_in_the_temporary_folder_if_that_does(monkeypatch, caplog):
    short = Path(os.path.realpath("/tmp")) / f"asyrp-{os.getpid()}"
    monkeypatch.setenv("TMPDIR", str(short))
    assert session_folder() == f"{short}/ray" and not caplog.records
    (short / "ray").rmdir()
    short.rmdir()


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/tmp/" + "x" * 60, "is too long a path for a socket"),
        ("/tmp/" + "é" * 40, "is too long a path for a socket"),
        ("/proc/no", "cannot be written"),
        ("/dev/null", "cannot be written"),
    ],
)
def test_a_temporary_folder_that_does_not_do_is_replaced_and_that_is_said(monkeypatch, caplog, folder, reason):
    monkeypatch.setenv("TMPDIR", folder)
    assert session_folder() == "/tmp/ray"
    [message] = caplog.messages
    assert message.startswith(f"Ray keeps its session in /tmp, since {folder} {reason}")


def test_without_any_folder_one_sentence_names_what_is_wrong_with_each(monkeypatch):
    monkeypatch.setattr("pipeline.engine.machine.FREE_BYTES", 1 << 60)
    with pytest.raises(UserError, match=r"no folder for its session: /tmp has only .* MB left; .* set RAY_TMPDIR to"):
        monkeypatch.setenv("TMPDIR", "/tmp")
        session_folder()


@pytest.mark.parametrize("home", ["/proc", "/dev/null"])
def test_ray_gets_its_token_by_the_environment_if_the_home_folder_cannot_keep_one(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    with token_without_home():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_ray_keeps_its_token_itself_if_it_can_or_if_the_user_has_said_how(monkeypatch, tmp_path):
    for name, value in (("HOME", str(tmp_path)), ("RAY_AUTH_MODE", "disabled")):
        monkeypatch.setenv(name, value)
        with token_without_home():
            assert "RAY_AUTH_TOKEN" not in os.environ
        monkeypatch.setenv("HOME", "/proc")


def test_a_process_may_open_as_many_files_as_its_hard_limit_allows():
    code = (
        "import resource; from pipeline.engine.machine import check_machine\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256)); check_machine()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(256, 256)\n"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    check_machine()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == before


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], str]]:
    """A server that answers one caller with some bytes; its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(data: bytes) -> None:
        connection, _ = server.accept()
        with connection, suppress(ConnectionResetError):
            connection.sendall(data)
            while connection.recv(65536):
                pass

    def start(data: bytes) -> str:
        threading.Thread(target=answer, args=(data,), daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    server.close()


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\0"])
def test_what_answers_and_is_no_ray_cluster_is_refused(serve, data):
    with pytest.raises(UserError, match=r"what answers at '127.0.0.1:.*' is no Ray cluster"):
        check_address(serve(data))


def test_a_cluster_that_does_not_speak_is_refused(serve, monkeypatch):
    monkeypatch.setattr("pipeline.engine.machine.PROBE_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"there is no Ray cluster at '127.0.0.1:.*timed out"):
        check_address(serve(b""))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("no.such.host.invalid:6379", "Name or service|Temporary failure|No address"),
        ("head:port", "write it as HOST:PORT"),
        ("head:99999", "write it as HOST:PORT"),
        ("x" * 300 + ":6379", "there is no Ray cluster"),
        ("a..b:6379", "there is no Ray cluster"),
    ],
)
def test_an_address_where_nobody_is_is_one_sentence(address, reason):
    with pytest.raises(UserError, match=reason) as refused:
        check_address(address)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("address", ["auto", "local", "anyscale://head:1"])
def test_other_forms_of_addresses_are_left_to_ray(address):
    check_address(address)


def test_one_that_speaks_as_ray_does_is_let_through(serve):
    check_address(serve(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])))
