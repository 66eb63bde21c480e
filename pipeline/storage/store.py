"""Reads and writes a folder on any fsspec filesystem.

Durability rests on three operations: write a whole file, create a file if it is absent, and list a folder. Filesystem
and path stay together, so a listed path is never opened again through its bare name.
"""

import errno
import io
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import fsspec
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from asyrp.errors import MachineError, UserError
from pipeline.storage.failures import machine_failure
from pipeline.storage.text import is_text

EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    **dict.fromkeys(("http", "https"), "http"),
}
"""For each protocol the extra of this package that installs its driver."""

TRANSIENT_STATUSES = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

WRAPPERS = re.compile(
    r"(zip|tar|libarchive|dir|reference|simplecache|filecache|blockcache|cached)(://|::).*://", re.DOTALL
)
"""A URL whose filesystem lies on another one, which the URL names behind `::`."""

HTTP_URL = re.compile(r"(https?://)([^/?#]*)(.*)", re.DOTALL)
UNQUOTED = re.compile(r"%(?![0-9A-Fa-f]{2})|[^!#$%&'()*+,./0-9:;=?@A-Z\[\]_a-z~-]")
"""What a URL must not hold unquoted: all but its own signs and the escapes that it has already."""


def open_filesystem(url: str) -> "Place":
    """The filesystem of a URL or local path, and the path on it.

    Names are literal. One without a scheme is a local path, whatever signs it holds (a `~` at its beginning is the
    home folder). `::` chains filesystems only behind one that lies on another, as in `zip://a.png::s3://bucket/a.zip`.
    So for every path that a filesystem lists, `open_filesystem(fs.unstrip_protocol(path))` gives this path.

    Raises:
        UserError: if the name is no text that a store can hold, the protocol is unknown or its driver is not installed.
    """
    try:
        if "\0" in url or not is_text(url):
            raise ValueError("its name holds a NUL or is not UTF-8 text, and could not be recorded: rename it")
        if WRAPPERS.match(url):
            return fsspec.core.url_to_fs(url, use_listings_cache=False)
        if is_local_path(url):
            return fsspec.filesystem("file", use_listings_cache=False), absolute_path(url)
        return _direct_filesystem(url)
    except ImportError as error:
        extra = EXTRAS.get(url.partition("://")[0])
        remedy = f"its driver is not installed: pip install 'asyrp[{extra}]'" if extra else str(error)
        raise UserError(f"cannot open {url}: {remedy}") from error
    except ValueError as error:
        raise UserError(f"cannot open {url}: {error}") from error


def is_local_path(url: str) -> bool:
    """Whether a name has no scheme and so is a path on the local disk."""
    return not (SCHEME.match(url) or WRAPPERS.match(url))


def absolute_path(path: str) -> str:
    """A local path, taken literally but for a home folder at its beginning, as an absolute one."""
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111  # Path.expanduser raises where none is meant


Place = tuple[fsspec.AbstractFileSystem, str]
"""A filesystem and a path on it."""


def lies_inside(place: Place, folder: Place) -> bool:
    """Whether a place is a folder or lies below it, once links of the local disk are followed."""
    (fs, path), (folder_fs, root) = place, folder
    if type(fs) is not type(folder_fs):
        return False
    if isinstance(fs, LocalFileSystem):
        path, root = os.path.realpath(path), os.path.realpath(root)
    return f"{path}/".startswith(f"{root.rstrip('/')}/")


def _direct_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL's scheme, and the path on it. Raises ValueError or ImportError if it cannot be had."""
    protocol = url.partition("://")[0]
    kind = fsspec.get_filesystem_class(protocol)
    options = {**kind._get_kwargs_from_urls(url), "use_listings_cache": False}
    if http := HTTP_URL.match(url):
        fs = fsspec.filesystem(protocol, encoded=True, **options)
        return fs, quoted_url(*http.groups())
    return fsspec.filesystem(protocol, **options), kind._strip_protocol(url)


def quoted_url(scheme: str, host: str, rest: str) -> str:
    """A URL with escapes for the signs that it must not hold. Escapes that are there already stay as they are."""
    host = host if host.isascii() else host.encode("idna").decode()
    return scheme + host + UNQUOTED.sub(lambda sign: quote(sign.group(), safe=""), rest)


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn every error of a filesystem into an OSError: those of HTTP and cloud drivers have no common base class.

    Raises:
        FileNotFoundError: for the HTTP status 404.
        PermissionError: for other statuses of 400 to 499 but those in TRANSIENT_STATUSES.
        OSError: for all other errors.
    """
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        status = getattr(error, "status", None)
        text = f"{type(error).__name__}: {error}"
        if status == HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(text) from error
        if status is not None and 400 <= status < 500 and status not in TRANSIENT_STATUSES:
            raise PermissionError(text) from error
        raise OSError(text) from error


@contextmanager
def explained(failure: str) -> Iterator[None]:
    """Turn errors of a filesystem into a UserError that begins with `failure`, where the cause is likely the user's.

    Raises:
        MachineError: if the disk is full, or the quota used up.
    """
    try:
        with os_errors():
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(f"{failure}: {machine_failure(error)}") from error
        raise UserError(f"{failure}: {error}") from error


@dataclass(frozen=True)
class Entry:
    """A file, folder, symbolic link or device as a listing shows it. A link is neither file nor folder, and is not
    followed.

    `name` is relative to the store's root. `modified` is in POSIX seconds, or None if the store does not say.
    """

    name: str
    is_file: bool
    is_folder: bool
    is_link: bool
    bytes: int
    modified: float | None


class NotRegular(OSError):
    """A path names a pipe, a socket, a device or a folder, and not a file."""


class NotAFile(UserError):
    """A store has a pipe, a socket, a device, a folder or a link to nothing where there should be a file."""


class OutsideRoot(UserError):
    """A name leads out of the root of a store. Names come from records, and a record is trusted with its root alone."""


class Store:
    """The files below one root URL, named by paths relative to it.

    No method reads, writes or deletes anything outside the root, whatever name it is given. What a driver raises is
    raised as an OSError.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, root = open_filesystem(url)
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.url,)

    def path(self, name: str) -> str:
        """The path of a file on the filesystem of the store. On a local disk this costs one lstat for each folder below
        the root.

        Raises:
            OutsideRoot: if the name is absolute, climbs, or leads through a symbolic link out of the root. The root
                itself may be a link, or lie behind one.
        """
        return self._checked(name, name)

    def _checked(self, name: str, followed: str) -> str:
        """The path of a file. `followed` is that part of its name whose links are followed."""
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise self._outside(name, "lies")
        if self.is_local and self._leads_out(followed):
            raise self._outside(name, "leads through a link")
        return f"{self.root}/{name}"

    def _outside(self, name: str, how: str) -> OutsideRoot:
        return OutsideRoot(
            f"{name!r} {how} outside the root {self.url}, and a record there names it: the record was changed by "
            "somebody, so bring it back from a copy"
        )

    def _leads_out(self, name: str) -> bool:
        place = self.root
        for part in name.split("/"):
            place = f"{place}/{part}"
            if _is_link(place):
                return not is_below(Path(self.root, name), self._real_root)
        return False

    @cached_property
    def _real_root(self) -> Path:
        return Path(self.root or "/").resolve()

    @os_errors()
    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError and NotAFile."""
        if self.is_local:
            with self.open(name) as file:
                return file.read()
        return self.fs.cat_file(self.path(name))

    @os_errors()
    def open(self, name: str) -> io.BufferedIOBase:
        """A stream of the bytes of a file.

        Raises:
            FileNotFoundError: if there is no such file.
            NotAFile: if there is something else on the local disk. It is not opened, because that may wait for ever.
        """
        path = self.path(name)
        if not self.is_local:
            return self.fs.open(path, "rb")
        try:
            return open_regular(path)
        except NotRegular:
            raise NotAFile(f"{name} at {self.url} is no regular file: bring the file back from a copy") from None
        except FileNotFoundError:
            if _is_link(path):
                raise NotAFile(f"{name} at {self.url} is a link to nothing: bring back what it leads to") from None
            raise

    @os_errors()
    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if there is no such file."""
        try:
            details = self.fs.info(self.path(name))
        except FileNotFoundError:
            return None
        return (details.get("size") or 0) if details["type"] == "file" else None

    @os_errors()
    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    @os_errors()
    def write(self, name: str, data: bytes) -> None:
        """Write a whole file and replace an old one. A reader sees all of the new file or none of it."""
        if self.is_local:
            with self._local_file(name, os.replace) as file:
                file.write(data)
        else:
            self.fs.pipe_file(self.path(name), data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A stream that becomes the file `name` when the block ends, and leaves nothing if the block raises.

        It is for data too large for memory. Data for a remote store waits on the local disk until the block ends.
        """
        if self.is_local:
            with self._local_file(name, os.replace) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            with os_errors():
                self.fs.put_file(file.name, self.path(name))

    @os_errors()
    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file if there is none; False if there is one.

        If several callers create a file at once, only one succeeds, unless the store ignores the condition (see
        `refuses_second_create`). On such a store the check for an existing file still stops a caller that comes late.
        """
        if not self.is_local and self.exists(name):
            return False
        return self._create(name, data)

    def refuses_second_create(self) -> bool:
        """Whether the store itself refuses to create a file that exists. It is found out by trying.

        Raises:
            UserError: if nothing can be written to the store.
        """
        name = _probe_name()
        with explained(f"cannot write to {self.url}"):
            self._create(name, b"first")
            refused = not self._create(name, b"second")
            self.fs.rm_file(self.path(name))
        return refused

    def clock(self) -> float | None:
        """The time by the clock of the store, in POSIX seconds, as it gives it to a file that is written now; None if
        it gives none. It can be compared with the times of other files of this store, and with nothing else.

        Raises:
            UserError: if nothing can be written to the store.
        """
        name = _probe_name()
        with explained(f"cannot write to {self.url}"):
            self.write(name, b"")
            try:
                return _modified(self.fs.info(self.path(name)))
            finally:
                self.fs.rm_file(self.path(name))

    def _create(self, name: str, data: bytes) -> bool:
        try:
            if self.is_local:
                with self._local_file(name, os.link) as file:
                    file.write(data)
            else:
                self.fs.pipe_file(self.path(name), data, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _is_precondition(error):
                return False
            raise
        return True

    def names(self, folder: str) -> Iterator[str]:
        """The names of all that is visible directly in `folder`; none if there is no such folder.

        Links, folders and devices are among them. What bears the name of a record stands for one: a record that is
        passed over would leave the files that it names without protection.
        """
        for entry in self.entries(folder):
            name = entry.name.rsplit("/", 1)[-1]
            if not name.startswith("."):
                yield name

    @os_errors()
    def entries(self, folder: str) -> list[Entry]:
        """All entries directly in `folder`, also hidden ones, from one listing; none if there is no such folder."""
        self.fs.invalidate_cache()
        try:
            listed: list[dict[str, Any]] = self.fs.ls(self.path(folder).rstrip("/"), detail=True)
        except FileNotFoundError:
            return []
        return [self._entry(details) for details in listed]

    @os_errors()
    def files(self, folder: str) -> list[Entry]:
        """All files below `folder`, also hidden ones. On an object store this takes one listing."""
        self.fs.invalidate_cache()
        return [self._entry(details) for details in self.fs.find(self.path(folder), detail=True).values()]

    @os_errors()
    def delete(self, name: str) -> None:
        """Delete a file or a folder, if it is there. Of a link only the link itself is deleted.

        Raises:
            OutsideRoot: as `path` does, also if the name is that of the root itself.
        """
        if not any(part not in ("", ".") for part in name.split("/")):
            raise OutsideRoot(f"{name!r} is the root {self.url} itself, which is never deleted: delete it by hand")
        path = self._checked(name, name.rstrip("/").rpartition("/")[0])
        if self.is_local:
            _delete_local(Path(path))
        elif has_magic(path):  # `rm` would take it for a pattern
            for file in self.fs.find(path):
                self.fs.rm_file(file)
        elif self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    def _entry(self, details: dict[str, Any]) -> Entry:
        return Entry(
            name=details["name"].rstrip("/").removeprefix(f"{self.root}/"),
            is_file=details["type"] == "file",
            is_folder=details["type"] == "directory",
            is_link=bool(details.get("islink")) or details["type"] == "link",
            bytes=details.get("size") or 0,
            modified=_modified(details),
        )

    @contextmanager
    def _local_file(self, name: str, publish: Callable[[Path, Path], None]) -> Iterator[IO[bytes]]:
        """A hidden temporary file, which is synced and given to `publish` with the target when the block ends.

        It is beside the target, so that both are on one disk. It is gone afterwards, also if the block raises.
        """
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _probe_name() -> str:
    return f".probe-{uuid.uuid4().hex}"


def is_below(path: Path, real_folder: Path) -> bool:
    """Whether a path leads below a folder, once all links are followed; it does not if its links go round in a
    circle."""
    try:
        return path.resolve().is_relative_to(real_folder)
    except RuntimeError:  # how pathlib reports a circle
        return False


def check_regular(path: str) -> None:
    """Raise NotRegular if a local path is no regular file. Nothing is opened: to open a pipe may wait for ever."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise NotRegular(f"{path} is not a regular file")


def open_regular(path: str) -> io.BufferedIOBase:
    """Open a local file, and nothing else. Raises FileNotFoundError and NotRegular."""
    check_regular(path)
    # The file may have become a pipe since the check. Without O_NONBLOCK, opening that would wait for a writer.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotRegular(f"{path} is not a regular file")
    return file


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return False


def _delete_local(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return  # somebody else has deleted it, or a part of it


def _is_precondition(error: OSError) -> bool:
    """Whether a store refused a condition with a general error code, as some S3 servers do."""
    return error.errno == errno.EINVAL and "pre-condition" in str(error).lower()


def _modified(details: dict[str, Any]) -> float | None:
    """The time when a file was written, in POSIX seconds. Filesystems have several names and types for it."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = details.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if value is not None:
            return float(value)
    return None
