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
from functools import partial
from itertools import islice

from fsspec import AbstractFileSystem
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from asyrp.errors import UserError
from pipeline.images.selection import ALL, Selection
from pipeline.images.skipped import Skipped
from pipeline.images.source import EXTENSIONS, SourceImage, recordable
from pipeline.run.plan import RUN
from pipeline.sources.files import Pattern, Tree, split_glob
from pipeline.sources.runs import images_of_run
from pipeline.sources.tables import images_of_csv, images_of_parquet, images_of_text
from pipeline.sources.tars import images_of_tar
from pipeline.storage.store import check_regular, explained, open_filesystem

Reader = Callable[[AbstractFileSystem, str, str, Selection], Iterator[SourceImage]]
"""Lists the images inside one file: (filesystem, path, prefix of the images' keys, selection) to images."""

LISTED_IN_FOLDERS = (".tar", ".parquet")
LISTS = (".csv", ".txt")
COMPRESSED = (".gz", ".tgz", ".bz2", ".zst", ".xz", ".zip")


def list_images(url: str, selection: Selection = ALL, skipped: Skipped | None = None) -> Iterator[SourceImage]:
    """The selected images of a source, in an order that depends only on their names.

    What the listing passes over is counted in `skipped`, as far as the listing is read.

    Raises:
        UserError: if there is no such source, it cannot be listed, or it lacks a column of the selection.
    """
    images = _all_images(url, selection, skipped or Skipped())
    return islice(selection.chosen(images), selection.limit)


def _all_images(url: str, selection: Selection, skipped: Skipped) -> Iterator[SourceImage]:
    failure = f"cannot list the source {url}"
    with explained(failure):
        fs, path = open_filesystem(url)
        fs.invalidate_cache()
        is_folder = fs.isdir(path)
    try:
        yield from map(recordable, _images(fs, path, url, is_folder, selection, skipped))
    except OSError as error:
        raise UserError(f"{failure}: {error}") from error


def _images(
    fs: AbstractFileSystem, path: str, url: str, is_folder: bool, selection: Selection, skipped: Skipped
) -> Iterator[SourceImage]:
    """The images at a path. What is there by its whole name is no glob, whatever signs the name has."""
    is_table = path.lower().endswith((*LISTED_IN_FOLDERS, *LISTS))
    if is_folder and fs.exists(f"{path.rstrip('/')}/{RUN}"):
        yield from images_of_run(url, selection)
    elif is_folder:
        tree = Tree(fs, path.rstrip("/") or path, (*EXTENSIONS, *LISTED_IN_FOLDERS), skipped)
        yield from _images_in(tree, selection)
    elif is_table and fs.exists(path):
        if isinstance(fs, LocalFileSystem):
            check_regular(path)
        yield from _reader(path, skipped)(fs, path, "", selection)
    elif has_magic(path):
        root, pattern = split_glob(fs, path)
        tree = Tree(fs, root, (*EXTENSIONS, *LISTED_IN_FOLDERS), skipped, Pattern(pattern))
        yield from _images_in(tree, selection)
        if not tree.found:
            raise UserError(f"source {url} matches no file")
    elif is_table:
        raise UserError(f"there is no source {url}")
    elif path.lower().endswith(COMPRESSED):
        raise UserError(f"source {url} is compressed as a whole: unpack it, images in it cannot be read one by one")
    else:
        raise UserError(
            f"source {url} is no folder: give a folder of images, a glob such as '{url}/**/*.png', or a .tar, "
            ".parquet, .csv or .txt file"
        )


def _images_in(tree: Tree, selection: Selection) -> Iterator[SourceImage]:
    """The image files, and the images inside tars and Parquet files. The keys of those begin with the file's own."""
    tree.skipped.all_files = True
    for file in tree.files():
        tree.skipped.all_files = False
        if file.denial or not file.path.lower().endswith(LISTED_IN_FOLDERS):
            yield file.image(tree.fs)
        else:
            inside = file.key.rpartition(".")[0]
            yield from _reader(file.path, tree.skipped)(tree.fs, file.path, f"{inside}/", selection)


def _reader(path: str, skipped: Skipped) -> Reader:
    readers: dict[str, Reader] = {
        ".tar": partial(images_of_tar, skipped=skipped),
        ".parquet": images_of_parquet,
        ".csv": images_of_csv,
        ".txt": images_of_text,
    }
    return readers[f".{path.rpartition('.')[2].lower()}"]
