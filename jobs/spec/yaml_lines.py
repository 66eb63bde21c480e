"""Reads the YAML that people give: within limits, and with the lines that the fields stand on.

The lines come from the marks that PyYAML gives its nodes. A file may come from somebody else, so its bytes, its depth
and its nodes are limited. Nodes count as often as aliases repeat them.
"""

import codecs
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from asyrp.errors import UserError

MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 100_000, 50
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


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


def read_document(path: Path, what: str, example: str) -> Document:
    """Read a file that holds one mapping. `what` it is and an `example` of a field are for the messages.

    Raises:
        UserError: if it cannot be read, is not YAML or beyond the limits (with the line), or holds something else.
    """
    text = _read_text(path, what)
    try:
        root, data = _load(text)
    except _Wrong as wrong:
        raise UserError(f"{path}:{wrong.line}: this is not YAML: {wrong.problem}") from wrong
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{what} {path} must be a mapping of names to values, such as '{example}'")
    return Document(data, root)


def read_mapping(path: Path, what: str, example: str) -> dict[str, Any]:
    """The mapping in a file, as `read_document` reads it. Raises UserError as well if a field stands twice."""
    document = read_document(path, what, example)
    for line, name in document.repeated():
        raise UserError(f"{path}:{line}: '{name}' is there twice: leave one out")
    return document.data


def read_value(text: str) -> Any:
    """The value that a YAML text of an option holds.

    Raises:
        UserError: if it is not YAML or beyond the limits.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"this is too long, it may have {MAX_BYTES:,} characters")
    try:
        return _load(text)[1]
    except _Wrong as wrong:
        raise UserError(f"this is not YAML: {wrong.problem}") from wrong


def _read_text(path: Path, what: str) -> str:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) or (stat.S_ISFIFO(mode) and not os.fspath(path).startswith(("/dev/", "/proc/"))):
            raise UserError(f"{what} {path} is no file: give the path of a YAML file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise UserError(f"cannot read {what} {str(path)!r}: {error}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{what} {path} is too large: it may have {MAX_BYTES:,} bytes")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: {what} is not text in UTF-8: byte {error.start + 1} is no character"
        ) from error


class _Wrong(Exception):
    """A text that is not YAML, or beyond the limits."""

    def __init__(self, line: int, problem: str) -> None:
        self.line, self.problem = line, problem


def _load(text: str) -> tuple[yaml.Node | None, Any]:
    """The root node of a text, and its value."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _Wrong(mark.line + 1 if mark else 1, error.problem or str(error.context)) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _Wrong(line, f"the character {chr(error.character)!a} may not stand in it") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits and with a line for every error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._sizes: dict[int, int] = {}  # of finished nodes by id, with what their aliases repeat

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, before, is_alias = self.peek_event().start_mark, self._nodes, self.check_event(yaml.AliasEvent)
        if self._depth == MAX_DEPTH:
            raise ComposerError(None, None, f"it is nested more than {MAX_DEPTH} deep", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise ComposerError(None, None, "an alias stands inside what it repeats", mark)
        self._nodes += self._sizes[id(node)] if is_alias else 1
        if self._nodes > MAX_NODES:
            raise ComposerError(None, None, f"it has more than {MAX_NODES:,} values, its aliases written out", mark)
        self._sizes.setdefault(id(node), self._nodes - before)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # of Python's own types: a month 13, a number of 5,000 digits
            raise ConstructorError(None, None, f"this is no value: {error}", node.start_mark) from error


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
