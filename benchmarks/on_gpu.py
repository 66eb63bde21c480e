"""The proof on a GPU: what a card computes, how fast, and what becomes of its failures. Under 9 minutes on an H100.

    python -m benchmarks.on_gpu                        # or `make gpu-proof`
    python -m benchmarks.on_gpu --device cpu --tiny    # every section on a CPU, with small nets, under 3 minutes

It prints one Markdown table after the other, and writes them with all numbers to `proof.md` and `proof.json` in
`--output`. A section that fails says so, and the others go on. What every section measures stands in its own module:
`gpu_parity`, `gpu_speed`, `gpu_pipeline`.
"""

import argparse
import gc
import json
import os
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Scale:
    """How large the nets are, and how much is measured."""

    size: int  # pixels a side
    base: int  # channels of the papers' nets
    batch: int
    images: int  # through the whole pipeline
    faces: int  # of the bundled model
    steps: int  # of the process, up and down
    matrix: int  # rows of the matrices whose product sets the ceiling
    backend: str  # of torch.compile
    families: tuple[str, ...] = ("Ho (DDPM++)", "iDDPM, ADM-P2")


FULL = Scale(256, 128, 32, 128, 64, 20, 8192, "inductor")
TINY = Scale(64, 32, 2, 8, 2, 4, 512, "eager", ("Ho (DDPM++)",))


class Table(NamedTuple):
    """A table of the report: a title, the heads of its columns, its rows, and what must be said of it."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[object, ...]]
    note: str = ""

    def markdown(self) -> str:
        lines = [self.heads, ("---",) * len(self.heads), *self.rows]
        text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        return f"\n**{self.title}**\n\n{text}\n" + (f"\n{self.note}\n" if self.note else "")


@dataclass
class Proof:
    """What all sections share: the device, the scale, a folder for files, and the facts found so far."""

    device: str
    scale: Scale
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def seconds(self, call: Callable[[], object], repeats: int = 5) -> float:
        """The seconds of a call, the median of some after a first one."""
        call()
        times = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return sorted(times)[repeats // 2]

    def release(self) -> None:
        """Forget nets that nobody holds, and what was compiled of them, so that the next has all of the memory."""
        torch._dynamo.reset()
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def attempt(self, name: str, row: Callable[[], tuple[object, ...]]) -> tuple[object, ...]:
        """A row of a table. One that fails says why, and costs the others nothing."""
        self.release()
        try:
            return (name, *row())
        except Exception as error:
            traceback.print_exc()
            self.failed.append(name)
            return (name, f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")

    def wait(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.on_gpu:
            torch.cuda.synchronize()


def machine(proof: Proof) -> list[Table]:
    """What the card is, and the two rates that nothing on it can exceed."""
    n = proof.scale.matrix
    a, b = (torch.randn(n, n, device=proof.device, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * n**3 / proof.seconds(lambda: a @ b) / 1e12
    copied = 2 * a.nbytes / proof.seconds(a.clone) / 1e9
    name = torch.cuda.get_device_name() if proof.on_gpu else platform.processor() or platform.machine()
    proof.facts |= {"card": name, "torch": torch.__version__, "ceiling_tflops": product, "copy_gb_per_s": copied}
    rows = [(name, torch.__version__, f"{product:,.1f} TFLOP/s", f"{copied:,.0f} GB/s")]
    return [Table("The machine", ("device", "torch", f"bfloat16 product of {n} x {n}", "copy"), rows)]


def sections() -> dict[str, Callable[[Proof], list[Table]]]:
    """The sections in the order of their weight: what is cut off by the clock matters least."""
    from benchmarks import gpu_parity, gpu_pipeline, gpu_speed

    return {
        "machine": machine,
        "parity": gpu_parity.parity,
        "levers": gpu_speed.levers,
        "pipeline": gpu_pipeline.throughput,
        "kernels": gpu_speed.kernels,
        "failures": gpu_pipeline.failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small nets and few images, to try the proof itself")
    parser.add_argument("--output", type=Path, default=Path("out/gpu-proof"))
    parser.add_argument("--minutes", type=float, default=9, help="no section begins after so many")
    parser.add_argument("--only", nargs="+", choices=list(sections()), help="these sections alone")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("ASYRP_CACHE", str(given.output.absolute() / "cache"))
    proof = Proof(given.device, TINY if given.tiny else FULL, given.output.absolute())
    began, report = time.perf_counter(), []
    for name, section in sections().items():
        begun = time.perf_counter() - began
        if (given.only and name not in given.only) or begun > 60 * given.minutes:
            continue
        proof.release()
        try:
            tables = section(proof)
        except Exception:
            proof.failed.append(name)
            tables = [Table(f"{name} failed", ("traceback",), [(line,) for line in traceback.format_exc().split("\n")])]
        seconds = time.perf_counter() - began - begun
        proof.facts.setdefault("seconds", {})[name] = round(seconds, 1)
        for table in tables:
            report.append(table.markdown())
            print(report[-1], flush=True)
        (given.output / "proof.md").write_text("".join(report))
        (given.output / "proof.json").write_text(json.dumps(proof.facts, indent=1, default=str) + "\n")
    print(f"\nseconds: {proof.facts['seconds']}")
    if proof.failed:
        raise SystemExit(f"failed: {', '.join(proof.failed)}")


if __name__ == "__main__":
    main()
