"""The order of the house: floors, rooms and modules import only what is below them."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import EXAMPLES, ROOT, make_faces, stand_in_run
from tools.import_graph import FLOORS, circles, imported_names, module_arrows, module_files, room, room_arrows

ROOMS = (
    # The method, from the bottom. The last one is the face, asyrp/__init__.py.
    "asyrp.errors",
    "asyrp.files",
    "asyrp.digests",
    "asyrp.numbers",
    "asyrp.mergeable",
    "asyrp.diffusion",
    "asyrp.models",
    "asyrp.directions",
    "asyrp.measures",
    "asyrp.learning",
    "asyrp.notebook",
    "asyrp",
    # The engine.
    "pipeline.storage",
    "pipeline.images",
    "pipeline.run",
    "pipeline.sources",
    "pipeline.augmentation",
    "pipeline.engine",
    "pipeline.datasets",
    "pipeline.stages",
    "pipeline.results",
    "pipeline.upkeep",
    # What people run.
    "jobs.display",
    "jobs.spec",
    "jobs.runs",
    "jobs.learn",
    "jobs.results",
    "jobs.targets",
    "jobs.schedule",
    "jobs.cli",
    "jobs.__main__",
)
"""Every room of the house from the bottom to the top. A room imports only rooms that stand before it."""

FORBIDDEN = {
    "asyrp": {"pipeline", "jobs", "ray", "fsspec", "pyarrow"},
    "pipeline": {"jobs"},
    "jobs": set(),
}
"""What a floor never imports, whatever the file."""

KNOWS_THE_METHOD = "pipeline.stages"
PLAIN = {
    "asyrp.errors",
    "asyrp.files",
    "asyrp.digests",
    "asyrp.numbers",
    "asyrp.measures.names",
    "asyrp.directions.edits",
}
"""The modules of asyrp that all rooms of the engine may import: messages, files, digests, numbers, names."""

HEAVY = ("torch", "diffusers", "ray")
PROMISE = re.compile(
    r"\b((no|without|(not|never) (need|import|load)s?) torch|without \w+ing torch|torch loads? only)\b", re.IGNORECASE
)
"""How a docstring or a comment says that the module loads without torch."""


def test_no_module_is_in_an_import_circle():
    assert circles(module_arrows(ROOT)) == []


def test_no_room_is_in_an_import_circle():
    assert circles(set(room_arrows(module_arrows(ROOT)))) == []


def test_every_room_has_a_place_in_the_order():
    empty = {"pipeline", "jobs"}  # the packages themselves
    assert sorted({room(module) for module in module_files(ROOT)} - empty) == sorted(ROOMS)


def test_rooms_import_only_rooms_below_them():
    height = {name: index for index, name in enumerate(ROOMS)}
    between = room_arrows(module_arrows(ROOT))
    assert {arrow: modules for arrow, modules in between.items() if not height[arrow[0]] > height[arrow[1]]} == {}


def test_the_order_of_rooms_is_an_order_of_floors():
    floors = [name.split(".")[0] for name in ROOMS]
    assert floors == sorted(floors, key=FLOORS.index)


def test_the_map_in_the_docs_has_the_rooms_in_this_order():
    tables = (
        (ROOT / "docs" / "architecture.md").read_text().split("## Map\n")[1].split("\n## ")[0].split("| room |")[1:]
    )
    mapped = [
        f"{floor}.{name}"
        for floor, table in zip(FLOORS, tables, strict=True)
        for name in re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)
    ]
    assert mapped == [name for name in ROOMS if (ROOT / name.replace(".", "/")).is_dir() and "." in name]


def test_the_init_of_a_room_imports_nothing():
    for module, file in module_files(ROOT).items():
        if file.name == "__init__.py" and module != "asyrp":
            assert not imported_names(file), file


def files(floor: str) -> list[Path]:
    found = sorted((ROOT / floor).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_no_floor_imports_what_is_above_it(floor):
    for file in files(floor):
        assert not {name.split(".")[0] for name in imported_names(file)} & FORBIDDEN[floor], file


def test_only_the_stages_of_the_engine_know_the_method():
    known = {
        (module, imported)
        for module, imported in module_arrows(ROOT)
        if module.startswith("pipeline.") and room(module) != KNOWS_THE_METHOD and imported.startswith("asyrp")
    }
    assert {imported for _, imported in known} <= PLAIN, {arrow for arrow in known if arrow[1] not in PLAIN}


def promising() -> list[str]:
    """The modules whose text makes that promise."""
    return [module for module, file in module_files(ROOT).items() if PROMISE.search(file.read_text())]


def loaded_by(code: str, *arguments: str | Path) -> tuple[set[str], str]:
    """Run `code` in a process of its own: which of the heavy packages it had loaded at its end, and its stdout."""
    at_exit = (
        f"import atexit, sys; atexit.register(lambda: print(*sorted({set(HEAVY)} & set(sys.modules)), file=sys.stderr))"
    )
    command = [sys.executable, "-c", f"{at_exit}\n{code}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()), done.stdout


def test_what_a_module_says_of_torch_in_its_docstring_is_a_promise_or_it_imports_torch():
    for module, file in module_files(ROOT).items():
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        if re.search(r"\btorch\b", docstring) and not PROMISE.search(docstring):
            assert "torch" in {name.split(".")[0] for name in imported_names(file)}, module


def test_modules_that_promise_to_load_without_torch_do():
    modules = promising()
    assert {"asyrp.models.find", "asyrp.measures.names", "pipeline.stages.settings"} <= set(modules)
    loaded, _ = loaded_by("\n".join(f"import {module}" for module in modules))
    assert "torch" not in loaded


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    stand_in_run(make_faces(folder / "faces", 7), folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("--help", "Edit image data sets"),
        ("status ROOT", "14 ok"),
        ("verify ROOT", "whole: "),
        ("jobs validate FILE", "nightly.yaml: good"),
    ],
)
def test_commands_that_compute_nothing_load_no_torch_no_diffusers_and_no_ray(command, says, finished_run):
    stands_for = {"ROOT": finished_run, "FILE": EXAMPLES[0]}
    arguments = [stands_for.get(word, word) for word in command.split()]
    loaded, out = loaded_by("from jobs.cli.app import main; main()", *arguments)
    assert says in out and not loaded


def test_the_graph_finds_imports_in_functions_and_circles(tmp_path):
    sources = {
        "asyrp/a.py": "def f():\n    from asyrp import b\n",
        "asyrp/b.py": "from asyrp.c.inner import name\n",
        "asyrp/c/inner.py": "import asyrp.a\nimport torch\n",
        "pipeline/d.py": "from asyrp import a, nothing\n",
        "asyrp/__init__.py": "",
        "asyrp/c/__init__.py": "",
    }
    for path, text in sources.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    arrows = module_arrows(tmp_path)
    assert arrows == {
        ("asyrp.a", "asyrp.b"),
        ("asyrp.b", "asyrp.c.inner"),
        ("asyrp.c.inner", "asyrp.a"),
        ("pipeline.d", "asyrp.a"),
        ("pipeline.d", "asyrp"),
    }
    assert circles(arrows) == [["asyrp.a", "asyrp.b", "asyrp.c.inner"]]
    assert circles(set(room_arrows(arrows))) == [["asyrp.a", "asyrp.b", "asyrp.c"]]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_finds_what_it_imports(name):
    try:
        importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        assert error.name in ("python_avatars", "resvg_py"), error  # of the extra 'tools'
