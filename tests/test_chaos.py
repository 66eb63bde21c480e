"""The short version of benchmarks/chaos.py; docs/recovery.md has the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_kills_of_actors_nodes_and_drivers_at_random_points_lose_double_and_change_nothing():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "benchmarks" / "chaos.py", "--kills", "3", "--images", "160", "--seed", "17"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
