"""Gives damaged inputs to the walls that must hold them, and counts what comes back.

    python -m benchmarks.fuzz --seed 1                 # all kinds, some minutes on one core
    python -m benchmarks.fuzz --kinds images tars      # some

| kind | what is damaged | what must come back |
|---|---|---|
| images | image files of every format, one by one | pixels or an ImageRefused |
| run | the same, in one run | a row each |
| tables, tars | sources | rows, or one sentence |
| specs | the examples of jobs | one sentence, or a spec |
| records | the files of a finished run, under all commands that read them | an exit code and no traceback |

The damage depends on the seed alone. An image that does anything else, or ends the decoder, is written to the working
folder. The exit code is 1 if anything has escaped.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.damage import damaged, sound_images
from benchmarks.fuzz_files import a_table, a_tar, fuzz_records, fuzz_run, fuzz_sources, fuzz_specs
from pipeline.images.codec import ImageRefused
from pipeline.images.decoder import Decoder


def fuzz_images(count: int, seed: int) -> Counter[str]:
    """Decode so many damaged images, and count what they gave: statuses, ends of a child, and what must not be."""
    decoder, sound, found = Decoder(), list(sound_images().items()), Counter[str]()
    for index in range(count):
        name, data = sound[index % len(sound)]
        data = damaged(data, random.Random(f"{seed} {index}"))
        try:
            assert decoder.decode(data, 32, "crop").pixels.shape == (32, 32, 3)
            found["ok"] += 1
        except ImageRefused as refusal:
            found[refusal.status] += 1
            if refusal.error_type in ("DecoderCrashed", "DecoderTimeout", "MemoryError"):
                found[f"{refusal.error_type} ({name})"] += 1
                Path(f"fuzz-{refusal.error_type}-{name.replace(' ', '-')}-{seed}-{index}").write_bytes(data)
        except Exception as error:
            found[f"escaped: {type(error).__name__} ({name})"] += 1
            Path(f"fuzz-escaped-{seed}-{index}").write_bytes(data)
        if index % 2000 == 1999 or index == count - 1:
            print(f"{index + 1:,} images: {memory_of(decoder)} MB in the child, {decoder.starts} started", flush=True)
    decoder.close()
    return found


def memory_of(decoder: Decoder) -> int:
    """The resident memory of a decoder's child, in MB; 0 if it has none."""
    if decoder.child_pid is None:
        return 0
    pages = int(Path(f"/proc/{decoder.child_pid}/statm").read_text().split()[1])
    return pages * 4096 // 10**6


KINDS: dict[str, tuple[int, Callable[[int, int], Counter[str]]]] = {
    "images": (20_000, fuzz_images),
    "run": (20_000, fuzz_run),
    "tables": (500, partial(fuzz_sources, a_table)),
    "tars": (500, partial(fuzz_sources, a_tar)),
    "specs": (500, fuzz_specs),
    "records": (500, fuzz_records),
}
"""For each kind, how many are tried, and by what."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--share", type=float, default=1.0, help="of the usual numbers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    escaped = 0
    for kind in options.kinds:
        usual, fuzz = KINDS[kind]
        count, start = max(1, round(usual * options.share)), time.perf_counter()
        found = fuzz(count, options.seed)
        print(f"{kind}: {count:,} in {time.perf_counter() - start:.0f} s", flush=True)
        for what, times in sorted(found.items()):
            print(f"{times:8,} {what}", flush=True)
        escaped += sum(times for what, times in found.items() if what.startswith("escaped"))
    sys.exit(escaped > 0)


if __name__ == "__main__":
    main()
