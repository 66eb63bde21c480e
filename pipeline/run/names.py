"""Names outputs: the template of file names, and the titles of edits and strengths."""

from pathlib import PurePosixPath

from pipeline.images.codec import EXTENSION, Codec

SEARCHED = "auto"
"""Stands for the strength in an output's name if every image has a strength of its own."""


def shown_strength(strength: float | None) -> str:
    """A variant's strength as names and messages have it."""
    return SEARCHED if strength is None else f"{strength:g}"


def edit_title(edit: str | None, strength: float | None) -> str:
    """How an edit is called over its pictures."""
    return str(edit) if strength == 0 else f"{edit} {shown_strength(strength)}"


def output_name(template: str, codec: Codec, key: str, edit: str | None, strength: float | None) -> str:
    """The name of an output: a path below its attempt's folder."""
    path = PurePosixPath(key)
    values = {"key": key, "stem": str(path.with_suffix("")), "name": path.stem, "parent": str(path.parent)}
    return template.format(**values, edit=edit, strength=shown_strength(strength)) + EXTENSION[codec]
