"""The container image: its file is linted and held against what it copies. Nothing here can build it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.runs import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


def test_the_dockerfile_is_good_to_its_linter():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_there_and_not_ignored_and_is_all_that_is_installed():
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", TEXT, re.MULTILINE) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages < copied
    extras = re.search(r"ARG EXTRAS=(\S+)", TEXT)
    assert extras is not None and set(extras[1].split(",")) <= project["project"]["optional-dependencies"].keys()


def test_the_image_runs_asyrp_as_a_user_who_is_not_root():
    last = TEXT[TEXT.rindex("FROM ") :]
    assert re.search(r"^USER [1-9]\d*$", last, re.MULTILINE) and 'ENTRYPOINT ["asyrp"]' in last


def test_torch_comes_from_another_index_if_one_is_given():
    line = re.search(r"^RUN (pip install .* torch torchvision)$", TEXT, re.MULTILINE)
    assert line is not None
    for index, flags in {"": "", "https://wheels": " --index-url https://wheels"}.items():
        said = subprocess.run(
            ["sh", "-c", f"echo {line[1]}"], env={"TORCH_INDEX": index}, capture_output=True, text=True
        )
        assert said.stdout == f"pip install --constraint constraints.txt{flags} torch torchvision\n"
