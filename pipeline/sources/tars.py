"""Lists the images in WebDataset tars, which are read in place and never extracted.

To list a tar, only headers are read: one small ranged read for each member, whatever the size of the images.
"""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem

from asyrp.errors import UserError
from pipeline.images.keys import safe_key
from pipeline.images.selection import Selection
from pipeline.images.source import EXTENSIONS, SourceImage, version_of

HEADER_BYTES = 4096


def images_of_tar(fs: AbstractFileSystem, path: str, prefix: str, selection: Selection) -> Iterator[SourceImage]:
    """The images in a tar. If the selection needs columns, they are the fields of a sample's JSON member.

    Raises:
        UserError: if it is not a tar, it is cut off, or a JSON member is damaged.
    """
    uri, version = fs.unstrip_protocol(path), version_of(fs.info(path))
    try:
        with (
            fs.open(path, "rb", block_size=HEADER_BYTES, cache_type="readahead") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for members in _samples(tar):
                columns = _columns(tar, members) if selection.reads_columns else {}
                for member in members:
                    if member.name.lower().endswith(EXTENSIONS):
                        key = prefix + safe_key(member.name)
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


def _samples(tar: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """The samples of a WebDataset tar: successive members with the same name up to its first dot."""
    sample: list[tarfile.TarInfo] = []
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
        if not member.isreg():
            continue
        if sample and _stem(member.name) != _stem(sample[0].name):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _columns(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> dict[str, Any]:
    for member in members:
        if member.name.lower().endswith(".json"):
            file = tar.extractfile(member)
            assert file is not None
            try:
                fields = json.loads(file.read())
            except ValueError as error:
                raise UserError(f"{member.name} in the tar is no JSON: {error}") from error
            return fields if isinstance(fields, dict) else {}
    return {}
