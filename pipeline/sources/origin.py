"""Holds what the manifests of a run name as their sources against the source of the run.

A manifest comes from storage, like a list of URLs, and is trusted no more than one. It may name what lies below the
source that run.json records, and URLs that a list may name. It must not make a command read any other file of this
machine.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from asyrp.errors import UserError
from pipeline.images.source import DENIED
from pipeline.run.manifest import Row
from pipeline.run.plan import RUN
from pipeline.sources.files import split_glob
from pipeline.sources.tables import may_be_listed
from pipeline.storage.records import read_as
from pipeline.storage.store import Store, is_below, open_filesystem


@dataclass(frozen=True)
class _Spec:
    source: str


@dataclass(frozen=True)
class _Run:
    spec: _Spec


class Origin:
    """The source of a run, and what is below it."""

    def __init__(self, store: Store) -> None:
        """Raises UserError if run.json is damaged or missing."""
        try:
            self.source = read_as(store, RUN, _Run).spec.source
        except FileNotFoundError:
            raise UserError(f"there is no run at {store.url}: it has no {RUN}") from None

    def held(self, row: Row) -> Row:
        """The row, with its source denied if it is none that the run may have read."""
        uri = row["source_uri"]
        if uri is None or uri.startswith(DENIED) or self._may_be_named(uri):
            return row
        return {**row, "source_uri": f"{DENIED}{uri!r} is not below the source of its run, {self.source}"}

    def _may_be_named(self, uri: str) -> bool:
        if may_be_listed(uri):
            return True
        try:
            fs, path = open_filesystem(uri)
        except UserError:
            return False
        if isinstance(fs, LocalFileSystem):
            return self._folder is not None and is_below(Path(path), self._folder)
        base, named = self._base.rstrip("/"), fs.unstrip_protocol(path)
        return named == base or (named.startswith(f"{base}/") and ".." not in named.split("/"))

    @cached_property
    def _base(self) -> str:
        """The URL of the source. For a pattern it is that of the folder in which it begins, and for a Parquet file that
        of its folder, because such a file may name images beside it."""
        fs, path = open_filesystem(self.source)
        folder, pattern = split_glob(fs, path)
        is_table = not pattern and folder.lower().endswith(".parquet")
        return fs.unstrip_protocol(folder.rpartition("/")[0] if is_table else folder)

    @cached_property
    def _folder(self) -> Path | None:
        """The source on this machine, with all links followed; None if it is elsewhere."""
        fs, path = open_filesystem(self._base)
        return Path(path).resolve() if isinstance(fs, LocalFileSystem) else None
