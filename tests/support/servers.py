"""Gives object stores on loopback, each with the environment that a driver needs to reach it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import fsspec
import pytest
from filelock import FileLock
from moto.server import ThreadedMotoServer

SECRET = "not-a-secret"
AZURITE = "azurite@3"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # well known
INSTALL_SECONDS, START_SECONDS = 240, 60


@dataclass(frozen=True)
class Server:
    """`bucket` is a URL that need not exist yet; `secret` is what must not get into any file."""

    bucket: str
    environment: Mapping[str, str]
    secret: str
    honours_conditions: bool = True

    @property
    def protocol(self) -> str:
        return self.bucket.partition("://")[0]


def s3(endpoint: str, honours_conditions: bool) -> Server:
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return Server("s3://bucket", environment, SECRET, honours_conditions)


@contextmanager
def moto(folder: Path, cache: Path) -> Iterator[Server]:  # noqa: ARG001
    """S3, in this process. Buckets belong to the process, so they are deleted with the server."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        yield s3(url, honours_conditions=True)
    finally:
        urlopen(Request(f"{url}/moto-api/reset", method="POST")).close()
        server.stop()


@contextmanager
def nanio(folder: Path, cache: Path) -> Iterator[Server]:  # noqa: ARG001
    """S3 that ignores If-None-Match."""
    port = _free_port()
    command = [sys.executable, "-m", "nanio", "serve", "--host", "127.0.0.1", "--port", str(port)]
    keys = {"NANIO_ACCESS_KEY": "test", "NANIO_SECRET_KEY": SECRET}
    with _started(
        [*command, "--data-dir", str(folder / "data")], folder / "log", r"running on (http://\S+)", keys
    ) as url:
        yield s3(url, honours_conditions=False)


@contextmanager
def azurite(folder: Path, cache: Path) -> Iterator[Server]:
    """Azure's Blob service."""
    command = [*_azurite(cache), "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    with _started([*command, "--disableTelemetry"], folder / "log", r"successfully listens on (http://\S+)", {}) as url:
        account = f"AccountName=devstoreaccount1;AccountKey={AZURITE_KEY}"
        connection = f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={url}/devstoreaccount1;"
        yield Server("az://bucket", {"AZURE_STORAGE_CONNECTION_STRING": connection}, AZURITE_KEY)


@contextmanager
def reached(server: Server) -> Iterator[Server]:
    """The server, with an empty bucket, for this process and those that it starts. It takes no older connection."""
    filesystem = fsspec.get_filesystem_class(server.protocol)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        filesystem.clear_instance_cache()
        fsspec.filesystem(server.protocol).mkdir("bucket")
        try:
            yield server
        finally:
            filesystem.clear_instance_cache()


SERVERS = {"moto": moto, "azurite": azurite, "nanio": nanio}


@contextmanager
def ray_head(log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """A Ray cluster of two CPUs in processes of its own, beside any other; the URL of its dashboard. Its agent, which
    starts jobs, comes a little later."""
    ports = {"port": 0, "min-worker-port": 0, "max-worker-port": 0}  # 0: any that is free
    ports |= {
        name: _free_port() for name in ("dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    }
    flags = [f"--{name}={port}" for name, port in ports.items()]
    start = "from ray.scripts.scripts import main; main()"
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # Ray has sockets in it, whose paths must be short
        command = [sys.executable, "-c", start, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}"]
        with _started([*command, *flags], log, r"(Ray runtime started)", environment):
            yield f"http://127.0.0.1:{ports['dashboard-port']}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _azurite(cache: Path) -> list[str]:
    """The command of azurite, installed once into the cache; where that cannot be done the test is skipped."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("azurite needs npm, and there is none")
    target = cache / AZURITE
    program = target / "node_modules" / ".bin" / "azurite-blob"
    with FileLock(cache / f"{AZURITE}.lock"):
        if not program.exists():
            unfinished = cache / f"{AZURITE}.{os.getpid()}"
            install = [npm, "install", "--prefix", str(unfinished), "--no-audit", "--no-fund", AZURITE]
            try:
                subprocess.run(install, capture_output=True, check=True, timeout=INSTALL_SECONDS)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                shutil.rmtree(unfinished, ignore_errors=True)
                pytest.skip(f"azurite cannot be installed: {error}")
            unfinished.rename(target)
    return [str(program)]


@contextmanager
def _started(command: list[str], log: Path, announcement: str, environment: Mapping[str, str]) -> Iterator[str]:
    """A server in a process of its own; the URL that it announces in its log."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        yield _announced(server, log, announcement)
    finally:
        server.terminate()
        server.wait()


def _announced(server: subprocess.Popen[bytes], log: Path, announcement: str) -> str:
    deadline = time.monotonic() + START_SECONDS
    while (found := re.search(announcement, log.read_text())) is None:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found.group(1)
