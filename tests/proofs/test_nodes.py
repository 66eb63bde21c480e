"""Clusters whose nodes come and go."""

import os
import subprocess
import sys

import pytest

from tests.support.runs import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["a_node_is_lost", "nodes_come_late"])
def test_a_run_ends_with_every_shard_committed_on_the_nodes_that_there_are(scenario, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.node_scenarios", scenario, tmp_path]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
