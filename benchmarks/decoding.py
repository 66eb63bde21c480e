"""Measures what it costs to decode in a child process instead of in the worker itself.

    python -m benchmarks.decoding

It decodes a PNG of 32 px, a JPEG of 256 px and a JPEG of 12 megapixels, each to the size at which it would be edited,
and prints the milliseconds per image for both ways, and their ratio. It also prints
how long a child takes to start, and its memory.
"""

import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from asyrp.models.folder import BUNDLED
from benchmarks.fuzz import memory_of
from pipeline.images.codec import decode_square
from pipeline.images.decoder import Decoder

ROUNDS = 7


def main() -> None:
    face = sorted((BUNDLED / "avatars" / "samples").glob("*.png"))[0].read_bytes()
    decoder, start = Decoder(), time.perf_counter()
    decoder.decode(face, 32, "crop")
    print(f"a child starts in {time.perf_counter() - start:.2f} s and has {memory_of(decoder)} MB")
    for name, data, size, count in (
        ("PNG, 32 px", face, 32, 1000),
        ("JPEG, 256 px", photograph(256, 256), 256, 200),
        ("JPEG, 12 megapixels", photograph(4000, 3000), 256, 3),
    ):
        here = milliseconds(count, lambda data=data, size=size: decode_square(data, size, "crop"))
        child = milliseconds(count, lambda data=data, size=size: decoder.decode(data, size, "crop"))
        print(f"{name:20} in this process {here:8.2f} ms, in a child {child:8.2f} ms, {child / here:.2f} times")
    decoder.close()


def milliseconds(count: int, call: Callable[[], object]) -> float:
    """The milliseconds of one call, on the clock: of `ROUNDS` times `count` calls, the fastest round."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            call()
        rounds.append(time.perf_counter() - start)
    return 1000 * min(rounds) / count


def photograph(width: int, height: int) -> bytes:
    """A JPEG with as much detail as a photograph has."""
    rough = np.random.default_rng(0).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
