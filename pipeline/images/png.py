"""Leaves out what the pixels of a PNG do not need, so that damage there is no damage of the image."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MEANING = (b"tRNS", b"iCCP", b"sRGB", b"eXIf")
"""The ancillary chunks that change what the pixels mean: transparency, colours, orientation."""


def without_extras(data: bytes) -> bytes | None:
    """A PNG with its critical chunks and those ancillary ones that are whole and say what the pixels mean; None if that
    is all it has, or it is no PNG."""
    if not data.startswith(SIGNATURE):
        return None
    kept, at = [SIGNATURE], len(SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunk = data[at:end]
        if _is_needed(chunk):
            kept.append(chunk)
        at = end
    lean = b"".join(kept)
    return lean if len(lean) < len(data) else None


def _is_needed(chunk: bytes) -> bool:
    kind = chunk[4:8]
    if kind[:1].isupper():  # critical
        return True
    return kind in MEANING and chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4, "big")
