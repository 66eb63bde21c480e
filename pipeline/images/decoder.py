"""Decodes images in child processes, which a crash, an endless loop or too much memory cannot leave."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.images.codec import Fit, ImageRefused, Square
from pipeline.images.decoder_process import OUT_OF_MEMORY, receive, send
from pipeline.images.statuses import DECODE_ERROR, REJECTED_SIZE

DEADLINE_SECONDS = 30.0
"""How long an image may keep a processor busy."""

MEMORY_BYTES = 3_000_000_000
"""The memory that a child may have."""

TIMEOUT, CRASHED = "DecoderTimeout", "DecoderCrashed"

KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME")
"""What a child gets of the environment. The rest, credentials among it, is none of its business."""


class Decoder:
    """A child process that decodes one image at a time. It starts with the first image, and again after a death.

    Not thread-safe.
    """

    def __init__(self, seconds: float = DEADLINE_SECONDS, memory: int = MEMORY_BYTES) -> None:
        self.seconds, self.memory = seconds, memory
        self.starts = 0
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def child_pid(self) -> int | None:
        """The process id of the child; None while there is none."""
        return None if self._child is None else self._child.pid

    def decode(self, data: bytes, size: int, fit: Fit) -> Square:
        """Decode an image as `codec.decode_square` does.

        An image that ends its child is given to a fresh one: an earlier image may have damaged or filled the first.

        Raises:
            ImageRefused: as `codec.decode_square` does. Also with decode_error if the image ends a fresh child or
                takes too long, and with rejected_size if it takes too much memory.
            OSError: if no child can be started.
        """
        is_fresh = self._child is None
        try:
            return self._ask(data, size, fit)
        except ImageRefused as refusal:
            if is_fresh or refusal.error_type not in (CRASHED, OUT_OF_MEMORY):
                raise
        return self._ask(data, size, fit)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._end(self._child)

    def _ask(self, data: bytes, size: int, fit: Fit) -> Square:
        if 2 * len(data) > self.memory:
            raise ImageRefused(REJECTED_SIZE, f"a file of {len(data) // 10**6:,} MB is too large to decode")
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            send(child.stdin, {"size": size, "fit": fit}, data)
            answer, pixels = receive(child.stdout)
        except (BrokenPipeError, EOFError):
            raise self._death(self._end(child)) from None
        if "status" not in answer:
            square = np.frombuffer(pixels, np.uint8).reshape(size, size, 3)
            return Square(square, answer["width"], answer["height"])
        if answer["error_type"] == OUT_OF_MEMORY:
            self._end(child)
        raise ImageRefused(answer["status"], answer["reason"], answer["error_type"])

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a child and wait until it is ready. It imports what this process would import."""
        found = {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        self._child = child = subprocess.Popen(
            [
                *(sys.executable, "-P", "-W", "ignore", "-m", "pipeline.images.decoder_process"),
                *(str(self.seconds), str(self.memory)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"OPENBLAS_NUM_THREADS": "1", **found, **kept},
        )
        self.starts += 1
        assert child.stdout is not None
        try:
            receive(child.stdout)
        except EOFError:
            raise ChildProcessError(f"the decoder process does not start: {_ending(self._end(child))}") from None
        return child

    def _end(self, child: subprocess.Popen[bytes]) -> int:
        """End a child that waits or is dead. Returns its exit code; if a signal ended it, the negative of that."""
        self._child = None
        assert child.stdin is not None and child.stdout is not None
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        return child.wait()

    def _death(self, code: int) -> ImageRefused:
        if -code in (signal.SIGPROF, signal.SIGALRM):
            reason = f"decoding it is not done after {self.seconds:g} s"
            return ImageRefused(DECODE_ERROR, reason, TIMEOUT)
        return ImageRefused(DECODE_ERROR, f"decoding it ended the decoder process: {_ending(code)}", CRASHED)


class Decoders:
    """Decoders for threads that share them: as many as are in use at once."""

    def __init__(self) -> None:
        self._idle: list[Decoder] = []

    def decode(self, data: bytes, size: int, fit: Fit) -> Square:
        """Decode an image as `Decoder.decode` does. Thread-safe."""
        try:
            decoder = self._idle.pop()
        except IndexError:
            decoder = Decoder()
        try:
            return decoder.decode(data, size, fit)
        finally:
            self._idle.append(decoder)

    def close(self) -> None:
        """End the child processes. No thread may be decoding."""
        while self._idle:
            self._idle.pop().close()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
