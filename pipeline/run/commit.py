"""Writes the attempts at a shard of a stage, and the small commit object that makes one of them count.

The order of writes is the protocol: first the data files, then the manifest, then the commit, which is created if
absent. Until the commit exists, nothing names the attempt's files. Once it exists, all of them are complete.
"""

import hashlib
import io
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Lock
from typing import IO

import pyarrow as pa

from asyrp.errors import UserError
from pipeline.run import manifest
from pipeline.storage.records import (
    Count,
    DamagedRecord,
    ShardCount,
    StageName,
    numbered,
    read_as,
    record_name,
)
from pipeline.storage.store import NotAFile, Store

FOLDER = "commit"
SHARD_DIGITS = 6
ATTEMPT_ID = re.compile("[A-Za-z0-9_-]+")
VERIFY = "asyrp verify says what to do"


@dataclass(frozen=True)
class FileEntry:
    """A file of an attempt. `path` is relative to the run's root."""

    path: str
    bytes: Count
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The content of a commit: the attempt that counts, its files, and its number of images and of rows by status.

    `manifest` is the path of the attempt's manifest. `input_digest` is the digest of the commit of the stage that was
    read, if any.
    """

    stage: StageName
    shard: ShardCount
    attempt: str
    images: Count
    statuses: dict[str, Count]
    manifest: str
    files: list[FileEntry]
    input_digest: str | None

    def file(self, path: str) -> FileEntry | None:
        """The entry of one of its files; None if it does not name it."""
        return next((file for file in self.files if file.path == path), None)


class DamagedCommit(UserError):
    """The file of a commit does not hold a commit, or a file that it names is not as it was committed."""


class AttemptGone(OSError):
    """Files of an attempt were deleted before it could commit."""


class Attempt:
    """One attempt at a shard. Its files have unique names, so two attempts never touch each other's files."""

    def __init__(self, store: Store, stage: str, shard: int) -> None:
        self.store, self.stage, self.shard = store, stage, shard
        self.id = uuid.uuid4().hex[:12]
        self.folder, self.manifest = _attempt_paths(stage, shard, self.id)
        self.files: list[FileEntry] = []
        self._may_be_committed = False
        self._lock = Lock()

    def write(self, name: str, data: bytes) -> FileEntry:
        """Write one data file of the attempt. Several threads may call it at once."""
        return self._write(f"{self.folder}/{name}", data)

    @contextmanager
    def writing(self, name: str) -> Iterator[tuple[str, IO[bytes]]]:
        """The path of a data file, and a stream that becomes the file. It is for data too large for memory."""
        path = f"{self.folder}/{name}"
        with self.store.writing(path) as file:
            stream = HashingStream(file)
            yield path, stream
        with self._lock:
            self.files.append(FileEntry(path, stream.tell(), stream.digest.hexdigest()))

    def commit(self, rows: Sequence[manifest.Row], images: int, input_digest: str | None) -> bool:
        """Write the manifest, then the commit. Returns False if another attempt counts.

        A refused create does not mean that another attempt was first: the store's client may have repeated our own
        create after a lost answer. So the commit is read to see which attempt it names.

        If another attempt counts, this one is deleted, unless its create succeeded. That happens on a store without
        conditional create, where another commit then replaced ours. A repetition of our create may still be on its way
        and name this attempt again.

        Raises:
            AttemptGone: if somebody has deleted files of the attempt. It takes one listing of its folder to see that.
        """
        self._refuse_gone()
        self._write(self.manifest, manifest.to_bytes(rows))
        statuses = dict(Counter(row["status"] for row in rows))
        files = sorted(self.files, key=lambda file: file.path)
        record = Commit(
            stage=self.stage,
            shard=self.shard,
            attempt=self.id,
            images=images,
            statuses=statuses,
            manifest=self.manifest,
            files=files,
            input_digest=input_digest,
        )
        self._may_be_committed = True
        created = self.store.create(commit_name(self.stage, self.shard), json.dumps(asdict(record), indent=1).encode())
        won = read_commit(self.store, self.stage, self.shard).attempt == self.id
        if not won and not created:
            self._delete()
        return won

    def discard(self) -> None:
        """Give the attempt up and delete its files, unless a commit may name them because a store's answer was lost."""
        if not self._may_be_committed:
            self._delete()

    def _refuse_gone(self) -> None:
        if not self.files:
            return
        listed = {entry.name: entry.bytes for entry in self.store.files(self.folder)}
        missed = [file for file in self.files if listed.get(file.path) != file.bytes]
        # A listing may be late. A file that it does not show is asked for by its name.
        if gone := [file.path for file in missed if self.store.size(file.path) != file.bytes]:
            raise AttemptGone(f"{gone[0]} was deleted at {self.store.url} before its shard was committed")

    def _delete(self) -> None:
        self.store.delete(self.folder)
        self.store.delete(self.manifest)

    def _write(self, path: str, data: bytes) -> FileEntry:
        self.store.write(path, data)
        entry = FileEntry(path, len(data), hashlib.sha256(data).hexdigest())
        with self._lock:
            self.files.append(entry)
        return entry


class HashingStream(io.BufferedIOBase, IO[bytes]):
    """A stream that passes data on to another stream, and computes its length and SHA-256."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest, self._written = stream, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.digest.update(data)
        self._written += len(data)
        return self.stream.write(data)

    def tell(self) -> int:
        return self._written


def committed(store: Store, stage: str) -> set[int]:
    """The committed shards of a stage, from one listing. Whatever bears the name of a commit counts as one, so that the
    files of its shard are never taken for garbage."""
    return set(numbered(store.names(f"{FOLDER}/{stage}"), SHARD_DIGITS))


def read_commit(store: Store, stage: str, shard: int) -> Commit:
    """The commit of a shard.

    Raises:
        FileNotFoundError: if the shard is not committed.
        DamagedCommit: if the file does not hold the commit of this shard.
    """
    name = commit_name(stage, shard)
    try:
        commit = read_as(store, name, Commit)
    except DamagedRecord:
        commit = None
    if commit is None:
        raise DamagedCommit(f"{name} at {store.url} cannot be read: {VERIFY}")
    if not _is_of(commit, stage, shard):
        raise DamagedCommit(f"{name} at {store.url} does not name the files of an attempt at its shard: {VERIFY}")
    return commit


def _is_of(commit: Commit, stage: str, shard: int) -> bool:
    """Whether a commit is of this shard, and names its own manifest and other files of its attempt alone."""
    if (commit.stage, commit.shard) != (stage, shard) or not ATTEMPT_ID.fullmatch(commit.attempt):
        return False
    folder, manifest_path = _attempt_paths(stage, shard, commit.attempt)
    paths = {file.path for file in commit.files}
    data = paths - {manifest_path}
    return (
        commit.manifest == manifest_path
        and manifest_path in paths
        and all(path.startswith(f"{folder}/") for path in data)
        and not any({"", ".."} & {*path.split("/")} for path in data)
    )


def _attempt_paths(stage: str, shard: int, attempt: str) -> tuple[str, str]:
    """The folder of an attempt's data, and the path of its manifest."""
    name = f"{stage}/{shard_name(shard)}.{attempt}"
    return f"data/{name}", f"manifest/{name}.parquet"


def commit_digest(store: Store, stage: str, shard: int) -> str:
    """SHA-256 of a commit. The commit of a stage that reads the shard records it."""
    return hashlib.sha256(store.read(commit_name(stage, shard))).hexdigest()


def read_committed(store: Store, commit: Commit, path: str) -> bytes:
    """The bytes of a file of a commit, which are held against its size and SHA-256.

    Raises:
        DamagedCommit: if they are missing, or others than were committed.
    """
    entry = commit.file(path)
    try:
        data = store.read(path)
    except FileNotFoundError:
        raise DamagedCommit(f"{path} is missing at {store.url}: {VERIFY}") from None
    except NotAFile:
        raise DamagedCommit(f"{path} at {store.url} is no regular file: {VERIFY}") from None
    if entry is None or (entry.bytes, entry.sha256) != (len(data), hashlib.sha256(data).hexdigest()):
        raise DamagedCommit(f"{path} at {store.url} is not what was committed: {VERIFY}")
    return data


def read_manifest(store: Store, commit: Commit) -> bytes:
    """The manifest of a commit. Raises DamagedCommit as `read_committed` does."""
    return read_committed(store, commit, commit.manifest)


def committed_rows(store: Store, stage: str, shards: Iterable[int]) -> Iterator[manifest.Row]:
    """The manifest rows of committed shards. Attempts that no commit names are never read.

    Raises:
        DamagedCommit: if a commit cannot be read, or its manifest is missing or not the committed one.
    """
    for shard in shards:
        yield from manifest.from_bytes(read_manifest(store, read_commit(store, stage, shard)))


def committed_table(store: Store, stage: str, shard: int, columns: Sequence[str]) -> pa.Table:
    """The given columns of the manifest of a committed shard. Raises DamagedCommit as `committed_rows` does."""
    return manifest.table_from_bytes(read_manifest(store, read_commit(store, stage, shard)), columns)


def commit_name(stage: str, shard: int) -> str:
    return f"{FOLDER}/{stage}/{record_name(shard, SHARD_DIGITS)}"


def shard_name(shard: int) -> str:
    """The number of a shard as it appears in file names."""
    return f"{shard:0{SHARD_DIGITS}d}"
