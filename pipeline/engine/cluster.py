"""Joins or starts a Ray cluster, and looks whether it is still there."""

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import ray

from asyrp.errors import MachineError, UserError
from pipeline.engine.machine import check_address, check_machine, session_folder, token_without_home

ASK_SECONDS = 5.0
START_SECONDS, JOIN_SECONDS, LEAVE_SECONDS = 300.0, 60.0, 10.0
"""How long Ray may take. A cluster that does not let go is left as it is: its local processes end with this one."""

LOST_SECONDS = 40.0
"""How long the cluster may leave a question unanswered. Ray itself ends the process after 60 s without its head."""

STORE_BYTES = 200_000_000
"""Of the object store on this machine. Only settings and shard ids go through it; /dev/shm is small in containers."""


class Cluster:
    """The nodes of the cluster that this process has joined.

    From `watch` to `close` a thread asks for them, because a question to a cluster that is gone has no end. `answers`
    counts how often it was answered.

    Raises:
        MachineError: if the cluster does not answer.
    """

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.answers = 0
        self._own_node = ray.get_runtime_context().get_node_id()
        self._closed = threading.Event()
        if not _within(LOST_SECONDS, self._ask_once):
            raise MachineError(f"the head of the Ray cluster (its GCS) has not answered for {LOST_SECONDS:.0f} s")
        self._thread = threading.Thread(target=self._ask, name="cluster", daemon=True)

    def watch(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(ASK_SECONDS)

    def total(self, resource: str) -> float:
        """How much of a resource the nodes have that are there."""
        return sum(node["Resources"].get(resource, 0) for node in self._alive())

    def can_hold(self, needs: Mapping[str, float]) -> bool:
        """Whether some node that is there could give what an actor needs, if nobody else used it."""
        return any(
            all(node["Resources"].get(name, 0) >= need for name, need in needs.items()) for node in self._alive()
        )

    def has_own_node(self) -> bool:
        """Whether the node is there through which this process reaches the cluster."""
        return any(node["NodeID"] == self._own_node for node in self._alive())

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self.nodes if node["Alive"]]

    def _ask(self) -> None:
        while not self._closed.wait(ASK_SECONDS):
            with suppress(Exception):  # whatever Ray raises here, it is no answer
                self._ask_once()

    def _ask_once(self) -> None:
        self.nodes = ray.nodes()
        self.answers += 1


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, or start one on this machine, and leave it when the block ends.

    If this process has already joined a cluster, it is used and not left. What Ray prints goes to stderr, shortened,
    because stdout is for results.

    Raises:
        UserError: if there is no cluster at the address, or this machine lacks something that Ray needs.
        MachineError: if Ray does not start for another reason.
    """
    if ray.is_initialized():
        yield
        return
    check_machine()
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with redirect_stdout(FirstLines()):
        session = _start() if address is None else _join(address)
        try:
            yield
        finally:
            session.leave()


class FirstLines(io.TextIOBase):
    """A stream that writes the first line of each text to stderr. Ray prints logs of a hundred lines with a message."""

    def write(self, text: str) -> int:
        first, newline, _ = text.partition("\n")
        sys.stderr.write(first + newline)
        return len(text)


class Session(threading.Thread):
    """The thread that joins a cluster, and leaves it when it is told to. The caller waits no longer than it wants.

    Linux ends the processes of a Ray cluster with the thread that started them, so this thread stays.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(name="ray session", daemon=True)
        self.options = options
        self.error: Exception | None = None
        self._joined, self._told = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        try:
            ray.init(logging_level=logging.CRITICAL, log_to_driver=False, **self.options)
        except Exception as error:  # Ray raises errors of any class, bare Exception among them
            self.error = error
            return
        finally:
            self._joined.set()
        self._told.wait()
        ray.shutdown()

    def failure(self, seconds: float) -> str | None:
        """Why the cluster was not joined in so many seconds, as one line; None if it was."""
        if not self._joined.wait(seconds):
            return f"it has taken more than {seconds:.0f} s"
        return str(self.error).partition("\n")[0] if self.error else None

    def leave(self) -> None:
        self._told.set()
        self.join(LEAVE_SECONDS)


def _start() -> Session:
    folder = session_folder()
    with token_without_home():
        # Without "local", Ray would join a cluster that somebody else has left running on this machine.
        session = Session(address="local", include_dashboard=False, _temp_dir=folder, object_store_memory=STORE_BYTES)
        reason = session.failure(START_SECONDS)
    if reason is not None:
        raise MachineError(
            f"Ray did not start on this machine: {reason}: try again when it has less to do; Ray needs memory, "
            f"processes (ulimit -u), address space (ulimit -v) and room in {folder}: see session_latest/logs"
        )
    return session


def _join(address: str) -> Session:
    check_address(address)
    session = Session(address=address)
    reason = session.failure(JOIN_SECONDS)
    if reason is not None:
        raise UserError(f"there is no Ray cluster at '{address}' that can be joined: {reason}")
    return session


def _within(seconds: float, call: Callable[[], object]) -> bool:
    """Whether a call has ended in so many seconds. It goes on in its thread if not. Raises what the call raises."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()


def has_gpu() -> bool:
    """Whether the cluster that this process has joined has a GPU."""
    return Cluster().total("GPU") >= 1
