"""Tensors and files of the official code, where they are here."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = SHARED / "golden"

OFFICIAL = SHARED / "official"

needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the files of the official release are not here")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden tensors of the official code are not here")


def read_config(family: str) -> dict:
    return json.loads((GOLDEN / family / "config.json").read_text())


def read_tensors(family: str, name: str = "tensors") -> dict[str, Tensor]:
    return load_file(GOLDEN / family / f"{name}.safetensors")
