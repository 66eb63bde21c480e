"""The proof that is run on a GPU, tried on a CPU."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.runs import ROOT

SECTIONS = {"machine", "parity", "levers", "pipeline", "failures", "kernels"}


@pytest.mark.slow
def test_every_section_of_the_gpu_proof_runs_on_a_cpu_with_small_nets(tmp_path):
    command = [sys.executable, "-m", "benchmarks.on_gpu", "--device", "cpu", "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "proof.json").read_text())
    assert facts["seconds"].keys() == SECTIONS
    assert facts["parity"]["float32, compiled"]["grey_levels"] == 0
    assert facts["failures"]["two actors, half a device each"].count("images") == 1
    text = (tmp_path / "proof.md").read_text()
    assert text.count("**") == 2 * 6 and "failed" not in text
