"""Lists the images in WebDataset tars, which are read in place and never extracted.

To list a tar, only headers are read: one small ranged read for each member, whatever the size of the images.
"""

import json
import math
import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

from fsspec import AbstractFileSystem

from asyrp.errors import UserError
from pipeline.images.keys import safe_key
from pipeline.images.selection import Selection
from pipeline.images.skipped import Skipped
from pipeline.images.source import DENIED, EXTENSIONS, SourceImage, escaped, version_of
from pipeline.sources.files import is_clutter

HEADER_BYTES = 4096
BLOCK = 512
LONGEST_HEADER = 1_000_000
"""The most bytes of one header. A header may hold long names, or thousands of attributes."""

LARGEST_JSON = 10_000_000
MOST_MEMBERS = 1_000
"""The most members of a sample. A longer one is taken for several."""

LONGEST_PADDING = 64_000_000
"""After so many zeros at its end a tar is at its end."""


def images_of_tar(
    fs: AbstractFileSystem, path: str, prefix: str, selection: Selection, *, skipped: Skipped
) -> Iterator[SourceImage]:
    """The images in a tar. If the selection needs columns, they are the fields of a sample's JSON member.

    Raises:
        UserError: if it is not a tar, it is cut off or damaged, or a JSON member is.
    """
    uri, version = fs.unstrip_protocol(path), version_of(fs.info(path))
    try:
        with fs.open(path, "rb", block_size=HEADER_BYTES, cache_type="readahead") as file:
            for sample in _samples(_members(file), skipped):
                images = _images_of(sample, selection.image_column, skipped)
                columns = _columns(file, sample, uri) if images and selection.reads_columns else {}
                for member in images:
                    key = prefix + safe_key(member.name)
                    if member.issparse():
                        yield SourceImage(
                            key, f"{DENIED}{escaped(member.name)[:200]} is a sparse member of a tar", columns=columns
                        )
                        continue
                    yield SourceImage(
                        key,
                        uri,
                        size=member.size,
                        etag=version,
                        member=member.name,
                        offset=member.offset_data,
                        columns=columns,
                    )
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{uri} is no whole tar: {error}") from error


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, and of those that follow it in one file, as `cat a.tar b.tar` makes them.

    Raises:
        TarError: if a header is damaged, or something that is no tar follows.
    """
    start: int | None = 0
    while start is not None:
        last = start - 1
        with _opened(file, start) as tar:
            while (member := _next(tar)) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
                if member.size < 0 or member.offset <= last:
                    raise tarfile.ReadError(f"the size of a member is {member.size}")
                last = member.offset
                yield member
            end = tar.offset
        if start and last < start:
            raise tarfile.ReadError(f"from byte {start:,} on it is no tar")
        start = _next_start(file, end)


def _opened(file: IO[bytes], start: int) -> tarfile.TarFile:
    file.seek(start)
    try:
        return tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:", encoding="utf-8")
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"a header is damaged: {type(error).__name__}: {error}") from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member. On damaged headers tarfile raises whatever its parts raise."""
    try:
        return tar.next()
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"a header is damaged: {type(error).__name__}: {error}") from error


class _Headers:
    """A file that gives tarfile no more than a header at a time, however many bytes a damaged header asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, count: int) -> bytes:
        if not 0 <= count <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header has {count:,} bytes")
        return self._read(count)


def _next_start(file: IO[bytes], end: int) -> int | None:
    """Where another tar begins after the zeros at the end of one; None if nothing follows."""
    file.seek(end)
    for at in range(end, end + LONGEST_PADDING, HEADER_BYTES):
        block = file.read(HEADER_BYTES)
        if rest := block.lstrip(b"\0"):
            return at + (len(block) - len(rest)) // BLOCK * BLOCK
        if not block:
            return None
    return None


def _samples(members: Iterator[tarfile.TarInfo], skipped: Skipped) -> Iterator[list[tarfile.TarInfo]]:
    """The samples of a WebDataset tar: successive members with the same name up to its first dot."""
    sample: list[tarfile.TarInfo] = []
    for member in members:
        if member.issym() or member.islnk():
            skipped.add_link()
        if not member.isreg() or is_clutter(member.name):
            continue
        if sample and (_stem(member.name) != _stem(sample[0].name) or len(sample) == MOST_MEMBERS):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _ending(name: str) -> str:
    """What WebDataset calls the field of a member: `seg.png` for `0001.seg.png`."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def _images_of(sample: list[tarfile.TarInfo], wanted: str | None, skipped: Skipped) -> list[tarfile.TarInfo]:
    """The images of a sample: those with the `wanted` ending, or else with one ending only, or else all.

    By WebDataset's convention `0001.jpg` is the image and `0001.seg.png` belongs to it.
    """
    if wanted:
        images = [member for member in sample if _ending(member.name) == wanted.lower().lstrip(".")]
    else:
        pictures = [member for member in sample if member.name.lower().endswith(EXTENSIONS)]
        images = [member for member in pictures if "." not in _ending(member.name)] or pictures
    for member in sample:
        if member not in images and not member.name.lower().endswith(".json"):
            skipped.add(member.name)
    return images


def _float(text: str) -> float | str:
    """A number of JSON; the text if it is too large for one."""
    value = float(text)
    return value if math.isfinite(value) else text


def _columns(file: IO[bytes], sample: list[tarfile.TarInfo], uri: str) -> dict[str, Any]:
    """The fields of the JSON member of a sample; none if it has no such member, or no fields.

    Raises:
        UserError: if the member is no JSON, or too large.
    """
    for member in sample:
        if member.name.lower().endswith(".json") and not member.issparse():
            if member.size > LARGEST_JSON:
                raise UserError(f"{member.name} in {uri} has {member.size:,} bytes: JSON may have {LARGEST_JSON:,}")
            file.seek(member.offset_data)
            try:
                fields = json.loads(file.read(member.size), parse_constant=str, parse_float=_float)
                json.dumps(fields)  # what is nested too deeply to be written is refused here
            except (ValueError, RecursionError) as error:
                raise UserError(f"{member.name} in {uri} is no JSON: {error}") from error
            return fields if isinstance(fields, dict) else {}
    return {}
