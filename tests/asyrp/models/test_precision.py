"""The precision that suits a device, and what a run makes of it."""

import pytest
import torch

from asyrp.errors import UserError
from asyrp.models import precision
from asyrp.models.precision import best_precision, set_up


def processor(flags: str) -> str:
    return f"processor\t: 0\nmodel name\t: one of these\nflags\t\t: fpu {flags} sse\nbugs\t\t: avx512_bf16_bug\n"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Says what /proc/cpuinfo holds."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "PROCESSORS", file)
    return file.write_text


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_a_processor_with_bfloat16_instructions_uses_them(cpu, flag):
    cpu(processor(f"avx2 {flag}"))
    assert best_precision("cpu") == ("bfloat16", f"this processor has {flag}")


@pytest.mark.parametrize("text", [processor("avx2 avx512f"), "", "flags: "])
def test_another_processor_computes_in_float32(cpu, text):
    cpu(text)
    assert best_precision("cpu").precision == "float32"


def test_a_system_that_does_not_tell_computes_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "PROCESSORS", tmp_path / "absent")
    assert best_precision("cpu").precision == "float32"


def test_a_gpu_computes_in_bfloat16_whatever_the_processor(cpu):
    cpu(processor("avx2"))
    assert best_precision("cuda").precision == "bfloat16"


@pytest.fixture
def tf32_flags():
    """Gives the two flags of torch, which belong to the process, and puts them back."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def test_float32_is_float32_for_convolutions_too_and_tf32_is_asked_for_by_name(tf32_flags):
    assert set_up("tf32", "cuda") == torch.float32 and tf32_flags() == (True, True)
    assert set_up("float32", "cuda") == torch.float32 and tf32_flags() == (False, False)
    assert set_up("bfloat16", "cuda") == torch.bfloat16


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="tf32 is for NVIDIA GPUs"):
        set_up("tf32", "cpu")
