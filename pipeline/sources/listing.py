"""Lists the images of a source with their keys, one at a time, for every form of source.

| a source is | it is read as |
|---|---|
| a folder or a glob of images | files |
| `.tar`, or a folder or glob of them | WebDataset tars: every image in them |
| `.parquet`, or a folder or glob of them | images in a column, or a list of URLs |
| `.csv`, `.txt` | a list of URLs |
| the root of a run | the images that the run made |
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import has_magic

from asyrp.errors import UserError
from pipeline.images.keys import safe_key
from pipeline.images.selection import ALL, Selection
from pipeline.images.source import EXTENSIONS, SourceImage, recordable
from pipeline.run.plan import RUN
from pipeline.sources.files import glob_files, image_of, walk
from pipeline.sources.runs import images_of_run
from pipeline.sources.tables import images_of_csv, images_of_parquet, images_of_text
from pipeline.sources.tars import images_of_tar
from pipeline.storage.store import explained, open_filesystem

Reader = Callable[[AbstractFileSystem, str, str, Selection], Iterator[SourceImage]]
"""Lists the images inside one file: (filesystem, path, prefix of the images' keys, selection) to images."""

READERS: dict[str, Reader] = {
    ".tar": images_of_tar,
    ".parquet": images_of_parquet,
    ".csv": images_of_csv,
    ".txt": images_of_text,
}
LISTED_IN_FOLDERS = (".tar", ".parquet")


def list_images(url: str, selection: Selection = ALL) -> Iterator[SourceImage]:
    """The selected images of a source, in an order that depends only on their names.

    Raises:
        UserError: if there is no such source, it cannot be listed, or it lacks a column of the selection.
    """
    return islice(selection.chosen(_all_images(url, selection)), selection.limit)


def _all_images(url: str, selection: Selection) -> Iterator[SourceImage]:
    fs, path = open_filesystem(url)
    fs.invalidate_cache()
    failure = f"cannot list the source {url}"
    with explained(failure):
        is_folder = fs.isdir(path)
    try:
        yield from map(recordable, _images(fs, path, url, is_folder, selection))
    except OSError as error:
        raise UserError(f"{failure}: {error}") from error


def _images(
    fs: AbstractFileSystem, path: str, url: str, is_folder: bool, selection: Selection
) -> Iterator[SourceImage]:
    if has_magic(path):
        root, entries = glob_files(fs, path, url)
        yield from _images_in_files(fs, root, entries, selection)
    elif is_folder:
        if fs.exists(f"{path.rstrip('/')}/{RUN}"):
            yield from images_of_run(url, selection)
        else:
            yield from _images_in_files(fs, path.rstrip("/"), walk(fs, path.rstrip("/")), selection)
    elif reader := READERS.get(_suffix(path)):
        if not fs.exists(path):
            raise UserError(f"there is no source {url}")
        yield from reader(fs, path, "", selection)
    elif _suffix(path) in (".gz", ".tgz", ".bz2", ".zst", ".xz", ".zip"):
        raise UserError(f"source {url} is compressed as a whole: unpack it, images in it cannot be read one by one")
    else:
        raise UserError(
            f"source {url} is no folder: give a folder of images, a glob such as '{url}/**/*.png', or a .tar, "
            ".parquet, .csv or .txt file"
        )


def _images_in_files(
    fs: AbstractFileSystem, root: str, entries: Iterator[dict[str, Any]], selection: Selection
) -> Iterator[SourceImage]:
    """The image files, and the images inside tars and Parquet files. The keys of those begin with the file's own."""
    for entry in entries:
        name: str = entry["name"]
        suffix = _suffix(name)
        if suffix in LISTED_IN_FOLDERS:
            inside = safe_key(name[len(root) :].removeprefix("/")[: -len(suffix)])
            yield from READERS[suffix](fs, name, f"{inside}/", selection)
        elif suffix in EXTENSIONS:
            yield image_of(fs, root, entry)


def _suffix(path: str) -> str:
    return "." + path.rsplit("/", 1)[-1].rpartition(".")[2].lower()
