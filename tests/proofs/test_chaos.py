"""The short version of benchmarks/chaos.py; docs/recovery.md has the long one."""

import os
import subprocess
import sys

import pytest

from tests.support.runs import ROOT


@pytest.mark.slow
def test_kills_of_actors_nodes_and_drivers_at_random_points_lose_double_and_change_nothing():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.chaos", "--kills", "3", "--images", "160", "--seed", "17"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
