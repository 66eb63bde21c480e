"""The import graph of the three floors: its rooms, the arrows between them, and its circles.

    python -m tools.import_graph [ROOT]

A room is a folder of a floor, or a module beside the folders. An arrow is the import of one module by another.
Imports inside functions and under TYPE_CHECKING count like those at the top of a file.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FLOORS = ("asyrp", "pipeline", "jobs")

Arrow = tuple[str, str]
"""The importing module or room, and the imported one."""


def module_files(root: Path) -> dict[str, Path]:
    """The file of every module of the floors below `root`, by the module's dotted name."""
    files = [file for floor in FLOORS for file in sorted((root / floor).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported_names(file: Path) -> set[str]:
    """The dotted names that a file imports: `a.b` of `import a.b`, and also of `from a import b`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.module is None or node.level:
                raise ValueError(f"{file}:{node.lineno}: relative imports are not followed")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_arrows(root: Path) -> set[Arrow]:
    """The imports between the modules below `root`. To import something of a module is an arrow to that module."""
    files = module_files(root)
    arrows = set()
    for module, file in files.items():
        names = imported_names(file)
        imported = {name if name in files else name.rpartition(".")[0] for name in names}
        arrows |= {(module, name) for name in imported & files.keys() - {module}}
    return arrows


def room(module: str) -> str:
    """The room of a module: `pipeline.run` of `pipeline.run.plan`."""
    return ".".join(module.split(".")[:2])


def room_arrows(arrows: set[Arrow]) -> dict[Arrow, set[Arrow]]:
    """The arrows between different rooms, each with the arrows between modules that it stands for."""
    between: dict[Arrow, set[Arrow]] = defaultdict(set)
    for importing, imported in arrows:
        if room(importing) != room(imported):
            between[room(importing), room(imported)].add((importing, imported))
    return dict(between)


def circles(arrows: set[Arrow]) -> list[list[str]]:
    """The groups of names in which each one imports, directly or not, all the others."""
    names = sorted({name for arrow in arrows for name in arrow})
    index = {name: i for i, name in enumerate(names)}
    ends = np.array([(index[a], index[b]) for a, b in arrows]).reshape(-1, 2)
    matrix = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    _, labels = connected_components(matrix, connection="strong")
    groups = [[names[i] for i in np.flatnonzero(labels == label)] for label in np.unique(labels)]
    return [group for group in groups if len(group) > 1]


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    modules, arrows = module_files(root), module_arrows(root)
    between = room_arrows(arrows)
    for floor in FLOORS:
        inside = [module for module in modules if module.split(".")[0] == floor]
        rooms = sorted({room(module) for module in inside})
        of_modules = sum(a in inside and b in inside for a, b in arrows)
        of_rooms = sorted((a, b) for a, b in between if a in rooms and b in rooms)
        print(f"{floor}: {len(inside)} modules with {of_modules} arrows, {len(of_rooms)} arrows between rooms")
        for name in rooms:
            below = [f"{b} ({len(between[a, b])})" for a, b in of_rooms if a == name]
            print(f"  {name} -> {', '.join(below) or 'nothing'}")
    print(f"circles of modules: {circles(arrows) or 'none'}")
    print(f"circles of rooms: {circles(set(between)) or 'none'}")


if __name__ == "__main__":
    main()
