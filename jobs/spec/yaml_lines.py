"""A YAML file and the lines that its fields stand on.

The lines come from the marks that PyYAML gives its nodes. PyYAML reads every other YAML of this package too, so no
second parser with other ideas of YAML is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from asyrp.errors import UserError


@dataclass(frozen=True)
class Document:
    """The content of a file, and the nodes that know its lines."""

    data: dict[str, Any]
    root: yaml.MappingNode

    def line(self, path: Sequence[int | str]) -> int:
        """The line of a field, or of what holds it if it is not there."""
        node: yaml.Node = self.root
        line = 1
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line

    def repeated(self) -> Iterator[tuple[int, str]]:
        """The fields that stand twice in one mapping, with their lines. PyYAML takes the last one and says nothing."""
        return _repeated(self.root)


def read_document(path: Path) -> Document:
    """Read a file that holds one mapping.

    Raises:
        UserError: if it cannot be read, is not YAML (with the line), or holds something else.
    """
    try:
        text = path.read_text()
        root = yaml.compose(text, yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} must be a mapping of names to values, such as 'name: nightly-glasses'")
    return Document(data, root)


def _child(node: yaml.Node, part: int | str) -> tuple[int, yaml.Node] | None:
    """The line and the value of one field or item of a node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _repeated(node: yaml.Node) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, key.value
            seen.add(key.value)
            yield from _repeated(value)
