"""The child process behind `decoder`: decodes the images that come in on stdin until stdin ends.

A message is a header, which is JSON, and bytes: an image on the way in, uint8 pixels on the way out. Nothing is
unpickled. The kernel holds the limits, so they also hold inside the C code of a codec. Without a handler their signals
end the process; `decoder` knows them by their numbers.
"""

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from typing import IO, Any

from pipeline.images.codec import ImageRefused, decode_square
from pipeline.images.statuses import REJECTED_SIZE

SIZES = struct.Struct(">IQ")
"""Before each message: the bytes of its header, and those behind the header."""

OUT_OF_MEMORY = "MemoryError"
"""The error type of a refusal because of the memory limit."""

WAITING = 10
"""How much longer than a processor may be busy with an image it may take on the clock, if the machine is busy."""


def send(stream: IO[bytes], header: Mapping[str, Any], data: bytes = b"") -> None:
    """Write a message. Raises BrokenPipeError if nobody reads it."""
    encoded = json.dumps(header).encode()
    stream.write(SIZES.pack(len(encoded), len(data)) + encoded)
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read a message. Raises EOFError if the stream ends before the message does."""
    header, data = SIZES.unpack(_read(stream, SIZES.size))
    return json.loads(_read(stream, header)), _read(stream, data)


def _read(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def serve(requests: IO[bytes], answers: IO[bytes], seconds: float, memory: int) -> None:
    """Answer requests until there are no more. `seconds` and `memory` (in bytes) are the limits for each image."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for ends_the_run in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ends_the_run, signal.SIG_IGN)  # the worker finishes its images, and then closes stdin
    send(answers, {"ready": True})
    while True:
        try:
            header, data = receive(requests)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)
        answer, pixels = _answer(header, data, memory)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        del data
        send(answers, answer, pixels)


def _answer(request: Mapping[str, Any], data: bytes, memory: int) -> tuple[dict[str, Any], bytes]:
    try:
        square = decode_square(data, request["size"], request["fit"])
    except ImageRefused as refusal:
        return {"status": refusal.status, "reason": str(refusal)[:500], "error_type": refusal.error_type}, b""
    except MemoryError:
        reason = f"decoding it takes over {memory // 10**6:,} MB of memory"
        return {"status": REJECTED_SIZE, "reason": reason, "error_type": OUT_OF_MEMORY}, b""
    return {"width": square.width, "height": square.height}, square.pixels.tobytes()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a codec prints is no answer
    serve(sys.stdin.buffer, answers, float(sys.argv[1]), int(sys.argv[2]))
