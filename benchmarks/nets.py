"""Converts the papers' nets at full size: strict conversion of a raw checkpoint, its folder, and one forward.

    python -m benchmarks.nets                  # Ho (DDPM++), iDDPM/ADM-P2, ADM ImageNet, at 256 px, random weights

The largest net needs about 6 GB of memory and 5 GB of disk. Prints seconds and the peak of resident memory so far.
"""

import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from asyrp.diffusion.process import predict
from asyrp.models.checkpoint import read_checkpoint
from asyrp.models.convert import convert, write_folder
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from tests.support.reference_nets import AdmNet, HoNet, randomised  # the papers' nets under their checkpoints' names

NETS = {
    "Ho (DDPM++)": lambda: HoNet(128, (1, 1, 2, 2, 4, 4), 2, (4,)),
    "iDDPM, ADM-P2": lambda: AdmNet(128, (1, 1, 2, 2, 4, 4), 1, (4,), 64),
    "ADM ImageNet": lambda: AdmNet(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 64),
}


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"  {what:<28}{time.perf_counter() - start:8.1f} s   peak {peak:5.1f} GB", flush=True)


@torch.inference_mode()
def measure(name: str, root: Path) -> None:
    reference = randomised(NETS[name](), 0)
    print(f"{name}: {sum(p.numel() for p in reference.parameters()):,} parameters", flush=True)
    torch.save(reference.state_dict(), root / "net.pt")
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with timed("forward, reference"):
        expected, _ = reference(x, 499)
    del reference
    with timed("read and convert"):
        converted = convert(read_checkpoint(root / "net.pt"))
    with timed("write the folder"):
        write_folder(converted, root / "folder", "net.pt")
    del converted
    folder = find_model(str(root / "folder"))
    with timed("digest"):
        print(f"  {folder.digest[:12]}")
    with timed("load"):
        model = load_model(folder)
    with timed("forward at 256 px"):
        eps = predict(model.unet, x, 499)
    print(f"  h {folder.h_shape}, eps differs by {((eps - expected).norm() / expected.norm()).item():.1e}", flush=True)


def main() -> None:
    for name in NETS:
        with tempfile.TemporaryDirectory() as root:
            measure(name, Path(root))


if __name__ == "__main__":
    main()
