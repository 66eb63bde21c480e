"""Knows how a name that somebody else chose is written: as a key, a path, a tar member, and a text for people.

| a name becomes | by | the rule |
|---|---|---|
| a key | `safe_key` | relative text without control characters; what it cannot hold is percent-escaped |
| an output's path | `output_name` | the template's, then as a key; cut where a store takes no longer name |
| a tar member | `tar_member` | as WebDataset reads it: without dots and without a folder that it skips |
| text for people | `printable` | what would steer a terminal, or turn the text around, is written as an escape |
| a table's cell | `markdown_cell` | signs of Markdown are escaped; HTML is escaped where it is rendered |

A name that a store, a tar or a terminal can carry is carried as it is: with spaces, backslashes, `%`, `::`, quotes,
signs of globs, leading and trailing dots, and letters of any script. `name_check` refuses two names that become one.
"""

import hashlib
import re
from string import Formatter

from asyrp.errors import UserError
from pipeline.images.codec import EXTENSION, Codec
from pipeline.images.keys import safe_key, without_here

SEARCHED = "auto"
"""Stands for the strength in an output's name if every image has a strength of its own."""

NAME_FIELDS = ("key", "stem", "name", "parent", "edit", "strength")
"""What a template of output names is made of."""

COMPONENT_BYTES = 255
"""The longest name of a file, in UTF-8, on common file systems."""

PATH_BYTES = 700
"""The longest path of an output below its attempt's folder. An object store takes 1,024 bytes for root, folder and
path."""

MEMBER_ENDING = ".source.jpeg"
"""The longest ending that a member of a tar gets after its sample's name."""

_STEERING = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def shown_strength(strength: float | None) -> str:
    """A variant's strength as names and messages have it."""
    return SEARCHED if strength is None else f"{strength:g}"


def edit_title(edit: str | None, strength: float | None) -> str:
    """How an edit is called over its pictures."""
    return str(edit) if strength == 0 else f"{edit} {shown_strength(strength)}"


def check_template(template: str) -> None:
    """Raise UserError if a template of output names is made of more than text and plain fields, or is no path below
    the output folder."""
    known = ", ".join(f"{{{field}}}" for field in NAME_FIELDS)
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"'{template}' is no output name: {error}; it is made of text and {known}") from error
    for _, field, form, conversion in pieces:
        if field is not None and (field not in NAME_FIELDS or form or conversion):
            given = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise UserError(f"'{template}' is no output name: '{given}' is not among {known}")
    sample = template.format(**dict.fromkeys(NAME_FIELDS, "x"))
    if safe_key(sample) != without_here(sample):
        raise UserError(
            f"'{template}' is no output name: it leaves the output folder, ends in no name of a file, or holds "
            "control characters"
        )


def output_name(template: str, codec: Codec, key: str, edit: str | None, strength: float | None) -> str:
    """The name of an output: a path below its attempt's folder.

    A file or folder name of more than COMPONENT_BYTES is cut, and so is a path of more than PATH_BYTES after a whole
    folder. A hash of what was cut takes the place of the rest.
    """
    folder, slash, name = key.rpartition("/")
    values = {"key": key, "stem": folder + slash + _stem(name), "name": _stem(name), "parent": folder or "."}
    path = safe_key(template.format(**values, edit=edit, strength=shown_strength(strength)) + EXTENSION[codec])
    *folders, file = path.split("/")
    parts = [*(_cut(folder, COMPONENT_BYTES) for folder in folders), _cut(file, COMPONENT_BYTES, EXTENSION[codec])]
    return "/".join(parts) if len("/".join(parts).encode()) <= PATH_BYTES else _cut_path(parts)


def _stem(name: str) -> str:
    """A file name without its last ending."""
    stem, _, ending = name.rpartition(".")
    return stem if stem and ending else name


def _cut(name: str, most: int, ending: str = "") -> str:
    """A name of at most `most` bytes, with a hash in place of what is cut out before its ending."""
    if len(name.encode()) <= most:
        return name
    rest = f"-{_hash(name)}{ending}"
    return name.encode()[: most - len(rest)].decode(errors="ignore") + rest


def _cut_path(parts: list[str]) -> str:
    """The first folders of a path, a hash of all its folders, and its file."""
    *folders, file = parts
    rest = f"/{_hash('/'.join(folders))}/{file}"
    kept = "/".join(folders).encode()[: PATH_BYTES - len(rest.encode())].decode(errors="ignore")
    return kept.rpartition("/")[0] + rest


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def tar_member(name: str) -> str:
    """The name of a sample in a tar, of which `urllib.parse.unquote` gives the name back unless it had to be cut.

    WebDataset takes what comes before the first dot of a file name as the sample's name, and skips a folder `__NAME__`.
    So dots of the file name and two leading underscores are escaped, and the sign of escapes itself.
    """
    folder, slash, file = name.replace("%", "%25").rpartition("/")
    member = folder + slash + _cut(file.replace(".", "%2E"), COMPONENT_BYTES - len(MEMBER_ENDING))
    return f"%5F{member.removeprefix('_')}" if member.startswith("__") else member


def printable(text: str) -> str:
    """A text for people, in which no character can steer a terminal, or hide or turn around what is beside it.

    Escapes stand for control characters but line breaks and tabs, for marks of the direction of writing, and for what
    is not Unicode text.
    """
    return _STEERING.sub(lambda sign: sign.group().encode("unicode_escape").decode(), text)


def markdown_cell(text: str) -> str:
    """A text as a cell of a Markdown table, or anywhere in one line of Markdown."""
    line = printable(text).replace("\n", " ").replace("\t", " ")
    return _MARKDOWN.sub(lambda sign: f"\\{sign.group()}", line)
