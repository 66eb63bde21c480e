"""Imports point down only."""

import ast
from pathlib import Path

import pytest

from tests.support.runs import ROOT

FORBIDDEN = {
    "asyrp": {"pipeline", "jobs", "ray", "fsspec", "pyarrow"},
    "pipeline": {"jobs"},
    "jobs": set(),
}
METHOD_ONLY_IN = {
    "pipeline/stages/functions.py",
    "pipeline/stages/inspection.py",
    "pipeline/stages/statistics.py",
    "pipeline/stages/readings.py",
    "pipeline/stages/reducers.py",
    "pipeline/stages/settings.py",
}
METHOD = {
    "process",
    "unet",
    "directions",
    "shift",
    "models",
    "labels",
    "pca",
    "jacobian",
    "scorers",
    "clip",
    "noise",
    "intervals",
    "interval_curves",
    "perceptual",
    "schedule",
    "selfcheck",
    "convert",
    "checkpoint",
    "released",
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(floor: str) -> list[Path]:
    found = sorted((ROOT / floor).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_no_floor_imports_what_is_above_it(floor):
    for file in files(floor):
        assert not {name.split(".")[0] for name in imports(file)} & FORBIDDEN[floor], file


def test_only_the_stages_of_the_engine_know_the_method():
    for file in files("pipeline"):
        if str(file.relative_to(ROOT)) not in METHOD_ONLY_IN:
            assert not {name for name in imports(file) if name.startswith("asyrp.") and name.split(".")[1] in METHOD}, (
                file
            )
