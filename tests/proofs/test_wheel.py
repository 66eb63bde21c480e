"""The wheel: it has every file of the three packages, and works where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.runs import ROOT, make_faces

PACKAGES = ("asyrp", "pipeline", "jobs")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel is built from, in a folder of its own: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)
    [built] = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with the wheel; all else it takes from the environment of the tests.

    A .pth file puts those packages behind the wheel's. The .pth files among them are not read, so the editable
    installation of the checkout is not seen.
    """
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "packages_of_the_tests.pth").write_text("\n".join(sorted(others)) + "\n")
    return python.parent


@pytest.fixture
def call(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Call a program of the fresh environment in an empty folder; its stdout."""

    def run(program: str, *arguments: str | Path) -> str:
        command = [installed / program, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=outside(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def outside() -> dict[str, str]:
    """The environment without what would lead Python to the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, env=outside(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel, source):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [file for package in PACKAGES for file in (source / package).rglob("*") if file.is_file()]
    assert packed == {str(file.relative_to(source)) for file in files}


def test_python_finds_the_wheel_and_no_checkout(installed, call):
    for package in PACKAGES:
        found = Path(call("python", "-c", f"import {package}; print({package}.__file__)").strip())
        assert found.is_relative_to(installed.parent)


def test_the_command_shows_its_help_its_models_and_its_schema(call):
    assert "--output" in call("asyrp", "demo", "--help")
    assert "avatars" in call("asyrp", "models", "list")
    schema = json.loads((ROOT / "jobs" / "spec" / "job.schema.json").read_text())
    assert json.loads(call("asyrp", "jobs", "schema")) == schema


def test_a_dashboard_is_written_from_the_wheel(call, tmp_path):
    call("asyrp", "cluster", "grafana", "-o", tmp_path / "grafana.json")
    assert json.loads((tmp_path / "grafana.json").read_text())["panels"]


def test_a_run_is_made_and_reported_from_the_wheel(call, tmp_path):
    faces, root = make_faces(tmp_path / "faces", 2), tmp_path / "out"
    call("asyrp", "run", "-s", faces, "-o", root, "-e", "glasses=1", "--n-inv", "4", "--n-gen", "4", "--no-check")
    assert len(list((root / "data" / "boost").rglob("*.png"))) == 2
    call("asyrp", "report", root)
    assert "uPlot" in (root / "report" / "report.html").read_text()
