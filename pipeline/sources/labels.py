"""Reads and writes labels of images: tables of numbers by key, which come from files, folder names or scores."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from asyrp.digests import json_digest
from asyrp.errors import UserError
from pipeline.images.keys import safe_key
from pipeline.sources.listing import list_images
from pipeline.storage.store import NotRegular, check_regular, open_filesystem

KEY = "key"
FOLDERS = "folders"
"""Given in place of a table of labels, it means that the folder of an image is its label."""

MAX_CLASSES = 10


@dataclass(frozen=True)
class LabelTable:
    """A table of labels. `rows` are float64 [N, columns], one for each of `keys`; `origin` says where it comes from."""

    origin: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    rows: NDArray[np.float64]

    def column(self, name: str) -> NDArray[np.float64]:
        """The values [N] of a label. Raises UserError if there is no label of that name."""
        if name not in self.columns:
            raise UserError(f"{self.origin} has no numeric column '{name}': it has {', '.join(self.columns)}")
        return self.rows[:, self.columns.index(name)]

    def only(self, names: Sequence[str]) -> "LabelTable":
        """The table with only these columns, in this order. Raises UserError if it lacks one."""
        rows = np.stack([self.column(name) for name in names], axis=1)
        return LabelTable(self.origin, tuple(names), self.keys, rows)

    def extremes(self, name: str, share: float) -> "LabelTable":
        """The `share` of images with the largest values of a label, and the same share with the smallest.

        The label becomes 1 for the first and 0 for the second.

        Raises:
            UserError: if a side has no image, or the two sides have a value in common.
        """
        values = self.column(name)
        count = int(share * len(values))
        order = np.argsort(values, kind="stable")
        low, high = order[:count], order[len(values) - count :]
        if count == 0 or values[low[-1]] >= values[high[0]]:
            raise UserError(
                f"{self.origin}: the {share:g} of {len(values)} images with the most and the least '{name}' are none, "
                "or alike: give a larger --extremes, more images, or another label"
            )
        kept = np.sort(np.concatenate([low, high]))
        rows = self.rows[kept].copy()
        rows[:, self.columns.index(name)] = np.isin(kept, high)
        return LabelTable(self.origin, self.columns, tuple(self.keys[i] for i in kept), rows)

    def classes(self, name: str) -> NDArray[np.bool_]:
        """Whether each image [N] has a binary label. Raises UserError if the label is not binary."""
        values = self.column(name)
        distinct = np.unique(values)
        if len(distinct) != 2:
            raise UserError(
                f"{self.origin}: a classifier needs two classes and '{name}' has {len(distinct)} "
                "value(s); --extremes makes two of a continuous label"
            )
        return values == distinct[1]

    def weights(self, name: str, balanced: Sequence[str]) -> NDArray[np.float64]:
        """Weights [N] of the images that make the two classes of a label comparable.

        With them both classes have the same total weight, and the same proportions of the labels `balanced`. An image
        has weight 0 if one class lacks its combination of these labels.

        Raises:
            UserError: if one of `balanced` has too many values to be balanced, or every image would have weight 0.
        """
        has = self.classes(name)
        others = np.stack([self.column(other) for other in balanced], axis=1) if balanced else np.zeros((len(has), 0))
        for other, values in zip(balanced, others.T, strict=True):
            if len(np.unique(values)) > MAX_CLASSES:
                raise UserError(f"{self.origin}: '{other}' has over {MAX_CLASSES} values: only classes can be balanced")
        cells = [tuple(row) for row in others.tolist()]
        counts = Counter(zip(has.tolist(), cells, strict=True))
        totals = Counter(cells)
        both = {cell for cell in totals if counts[True, cell] and counts[False, cell]}
        if not both:
            raise UserError(f"{self.origin}: no combination of {', '.join(balanced)} has both classes of '{name}'")
        weights = [
            totals[cell] / counts[label, cell] / 2 if cell in both else 0.0
            for label, cell in zip(has.tolist(), cells, strict=True)
        ]
        return np.array(weights)

    def digest(self) -> str:
        """SHA-256 of the labels by key."""
        rows = sorted(zip(self.keys, self.rows.tolist(), strict=True))
        return json_digest([self.columns, rows])


def find_labels(labels: str, source: str, names: Sequence[str]) -> LabelTable:
    """The table `labels` (or FOLDERS) for the images of a source, with columns for `names`.

    Raises:
        UserError: if there is no such table or column, or the table has none of the images.
    """
    table = folder_labels(source, names) if labels == FOLDERS else read_labels(labels)
    for name in names:
        table.column(name)
    known = set(table.keys)
    if not any(image.key in known for image in list_images(source)):
        raise UserError(
            f"none of the images below {source} is in {labels}: its column '{KEY}' must hold their paths relative to "
            "the source"
        )
    return table


def folder_labels(source: str, names: Sequence[str]) -> LabelTable:
    """A table with a column for each name: 1 for the images in the folder of that name, 0 for the others.

    Raises:
        UserError: if there is no folder of that name.
    """
    folders = {image.key: PurePosixPath(image.key).parts[:-1] for image in list_images(source)}
    known = sorted({folder for parts in folders.values() for folder in parts})
    for name in names:
        if name not in known:
            raise UserError(f"below {source} there is no folder '{name}': there are {', '.join(known) or 'none'}")
    rows = np.array([[float(name in parts) for name in names] for parts in folders.values()])
    return LabelTable(f"the folders of {source}", tuple(names), tuple(folders), rows)


def read_labels(url: str) -> LabelTable:
    """The numeric columns of a CSV or Parquet table with a column of keys.

    Raises:
        UserError: if there is no such table, it has no keys or no numeric column, or cells are empty.
    """
    fs, path = open_filesystem(url)
    is_parquet = path.lower().endswith(".parquet")
    text_keys = pa.csv.ConvertOptions(column_types={KEY: pa.string()})
    try:
        if isinstance(fs, LocalFileSystem):
            check_regular(path)
        with fs.open(path, "rb") as file:
            table = pa.parquet.read_table(file) if is_parquet else pa.csv.read_csv(file, convert_options=text_keys)
            names = table.column_names
    except FileNotFoundError:
        raise UserError(f"there is no table of labels {url}") from None
    except NotRegular as error:
        raise UserError(f"the table of labels {error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{url} is neither CSV in UTF-8 nor Parquet: {error}") from error
    if twins := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{url} has several columns '{twins[0]}': rename all but one")
    if KEY not in names:
        raise UserError(f"{url} has no column '{KEY}' with the images' paths relative to the source")
    if not table.num_rows:
        raise UserError(f"{url} has no rows: give a row with labels for each image")
    numeric = [
        f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)
        or pa.types.is_boolean(f.type)
    ]  # fmt: skip
    numeric = [name for name in numeric if name != KEY]
    if not numeric:
        raise UserError(f"{url} has no numeric column: labels are numbers, such as 0 and 1")
    try:
        columns = [pc.cast(table[name], pa.float64()).to_numpy() for name in numeric]
    except pa.ArrowInvalid as error:
        raise UserError(f"{url} has a label that is no float64: {error}") from error
    rows = np.stack(columns, axis=1)
    first_row = 1 if is_parquet else 2  # the first line of a CSV file is its header
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise UserError(
            f"{url}: '{numeric[column]}' in row {row + first_row} is empty or not finite: every image needs every label"
        )
    keys = _keys(table[KEY], first_row, url)
    _refuse_contradictions(keys, rows, first_row, url)
    return LabelTable(url, tuple(numeric), keys, rows)


def _keys(column: pa.ChunkedArray, first_row: int, url: str) -> tuple[str, ...]:
    """The keys as those of sources are made. Raises UserError if one is empty or cannot be read."""
    if pa.types.is_nested(column.type):
        raise UserError(f"the column '{KEY}' of {url} holds {str(column.type)[:200]}: keys are texts or numbers")
    try:
        found = column.to_pylist()
        keys = [key.decode() if isinstance(key, bytes) else key for key in found]
    except UnicodeDecodeError as error:
        raise UserError(f"{url} has a key that is not UTF-8: {error}") from error
    except (pa.ArrowException, ValueError, OverflowError, ImportError) as error:  # of dates and times
        raise UserError(f"{url} has keys of the type {column.type} that cannot be read: {error}") from error
    for row, key in enumerate(keys, first_row):
        if key is None or key == "":
            raise UserError(f"{url} has no key in row {row}: every row of labels needs the key of its image")
    return tuple(safe_key(str(key)) for key in keys)


def _refuse_contradictions(keys: Sequence[str], rows: NDArray[np.float64], first_row: int, url: str) -> None:
    """Raise UserError if a key has two rows that differ. The message names both."""
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        before = first.setdefault(key, row)
        if not np.array_equal(rows[before], rows[row]):
            raise UserError(
                f"{url} has other labels for '{key}' in row {before + first_row} than in row {row + first_row}: "
                "keep one of them"
            )


def write_labels(table: LabelTable, url: str) -> None:
    """Write a table as CSV or Parquet, as the ending of its name says."""
    columns = {KEY: list(table.keys), **{name: table.column(name) for name in table.columns}}
    buffer = io.BytesIO()
    write = pa.parquet.write_table if url.endswith(".parquet") else pa.csv.write_csv
    write(pa.table(columns), buffer)
    fs, path = open_filesystem(url)
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(path, buffer.getvalue())
