"""Whatever the damage, an image gets its row, and a table, tar, spec or record gives rows or one sentence."""

import pytest

from benchmarks.fuzz import KINDS

SHARES = {"images": 0.05, "run": 0.02, "tables": 0.06, "tars": 0.06, "specs": 0.06, "records": 0.06}
"""Parts of the usual numbers that take about ten seconds each."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_escapes(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual, fuzz = KINDS[kind]
    found = fuzz(round(SHARES[kind] * usual), 2)
    assert found.total() and not [what for what in found if what.startswith("escaped")]
