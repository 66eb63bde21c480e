"""Clusters whose nodes come and go."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("scenario", ["a_node_is_lost", pytest.param("nodes_come_late", marks=pytest.mark.slow)])
def test_a_run_ends_with_every_shard_committed_on_the_nodes_that_there_are(scenario, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, TESTS / "node_scenarios.py", scenario, tmp_path]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
