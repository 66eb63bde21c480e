"""In which precision a net computes, and which one suits a device. torch loads only where it is set up."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from asyrp.errors import UserError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
"""The precision of a net. tf32 is float32 whose products an NVIDIA GPU computes with 10 bits of mantissa.

The sums of the diffusion process are float32 in each of them.
"""

FAST_BFLOAT16 = frozenset(("avx512_bf16", "amx_bf16"))
"""The flags of processors that compute faster in bfloat16 than in float32. Others emulate it."""

PROCESSORS = Path("/proc/cpuinfo")


class Choice(NamedTuple):
    """A precision, and the reason for it as a part of a sentence."""

    precision: Precision
    reason: str


def best_precision(device: str) -> Choice:
    """The precision that suits `device`, "cuda" or "cpu"; for the latter, the processor of this machine."""
    if device == "cuda":
        return Choice("bfloat16", "the net runs on a GPU")
    flags = sorted(FAST_BFLOAT16 & _processor_flags())
    if flags:
        return Choice("bfloat16", f"this processor has {flags[0]}")
    return Choice("float32", "this processor is not faster in another")


def _processor_flags() -> set[str]:
    try:
        flags = re.search(r"^flags\s*:(.*)$", PROCESSORS.read_text(), re.MULTILINE)
    except OSError:  # no Linux
        return set()
    return set(flags[1].split()) if flags else set()


def set_up(precision: Precision, device: str) -> "torch.dtype":
    """The dtype of a net's weights in a precision. Sets for this process whether float32 products may be TF32.

    torch lets convolutions be TF32 unless it is told not to.

    Raises:
        UserError: for tf32 on a CPU.
    """
    import torch

    if precision == "tf32" and device == "cpu":
        raise UserError("dtype tf32 is for NVIDIA GPUs, and the net runs on a CPU: give float32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.float32 if precision == "tf32" else getattr(torch, precision)
