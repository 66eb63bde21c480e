"""Makes keys of names that somebody else chose: names of files, of members of tars, and cells of tables."""

import re

_UNSAFE = re.compile(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]|(?<![^/])/|/\Z|(?<![^/])\.\.?(?![^/])")
_HERE = re.compile(r"(?<![^/])(?:\./)+")


def safe_key(name: str) -> str:
    """A key made from a name: relative, and text that every store, table and tar can hold.

    Percent-escaped are control characters, bytes that are not UTF-8, components `.` and `..`, and a slash that is the
    first or last sign or follows another. `./` is left out. Any other text is its own key, and so is every key.
    """
    return _UNSAFE.sub(lambda found: _escape(found.group()), without_here(name)) or "_"


def without_here(path: str) -> str:
    """A path without `./`, which says nothing."""
    return _HERE.sub("", path)


def _escape(text: str) -> str:
    """The percent-escapes of a text's bytes. Python reads a byte that is not UTF-8 as a surrogate."""
    errors = "surrogateescape" if "\udc80" <= text <= "\udcff" else "surrogatepass"
    return "".join(f"%{byte:02X}" for byte in text.encode(errors=errors))
