"""Reads one object of a filesystem, or a range of it, within a deadline and up to a largest size.

The size is looked at before anything is read, where the filesystem tells it. It is held to while the bytes come as
well: a server may send a body without an end, or a small one that unpacks to a large one.
"""

import errno
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from http import HTTPStatus
from threading import Thread
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.store import open_regular, os_errors

DEADLINE_SECONDS = 60.0
"""The deadline of one attempt at one object."""

CHUNK = 1 << 16
Answer = TypeVar("Answer")


class TooLarge(OSError):
    """An image has more bytes than may be read."""


class Hung(OSError):
    """A filesystem has not answered within the deadline, and the call cannot be taken back."""


def read_object(fs: AbstractFileSystem, path: str, most: int, size: int | None = None) -> bytes:
    """All bytes of an object. `size` is the size that it should have: one byte more may be read, to see that it grew.

    Raises:
        TooLarge: if there are more than `most` bytes.
        OSError: if it cannot be read.
    """
    if isinstance(fs, LocalFileSystem):
        return within_deadline(lambda: _local(path, most))
    if is_http(fs):
        return _synced(fs, lambda: _http(fs, path, most))
    if not size:
        size = _size(fs, path)
        refuse_larger(size, most)
    if size == 0:
        return b""
    try:
        return read_range(fs, path, 0, (most if size is None else size) + 1, most)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Some S3 servers refuse a range that ends behind the object.
        size = _size(fs, path)
        refuse_larger(size, most)
        return read_range(fs, path, 0, size or most, most)


def read_range(fs: AbstractFileSystem, path: str, start: int, end: int, most: int) -> bytes:
    """The bytes `start` to `end` of an object, or fewer if it ends before. Raises as `read_object` does."""
    if isinstance(fs, LocalFileSystem):
        data = within_deadline(lambda: _local(path, most, start, end))
    elif is_http(fs):
        data = _synced(fs, lambda: _http(fs, path, most, (start, end)))
    elif isinstance(fs, AsyncFileSystem):
        data = _synced(fs, lambda: fs._cat_file(path, start=start, end=end))
    else:
        with os_errors():
            data = within_deadline(lambda: fs.cat_file(path, start=start, end=end))
    refuse_larger(len(data), most)
    return data


def refuse_larger(size: int | None, most: int) -> None:
    """Raise TooLarge if a size is known and over the limit."""
    if size is not None and size > most:
        raise TooLarge(f"it has {size:,} bytes or more, and the limit is {most:,}: give a larger max_image_bytes")


def within_deadline(read: Callable[[], Answer]) -> Answer:
    """The result of a call that cannot be interrupted, such as a read of a file on NFS.

    A call that does not return in time is left alone in its thread, which does not keep the process alive.

    Raises:
        Hung: if it has not returned after DEADLINE_SECONDS.
    """
    answer: Future[Answer] = Future()

    def call() -> None:
        try:
            answer.set_result(read())
        except BaseException as error:  # the caller gets it
            answer.set_exception(error)

    Thread(target=call, name="read", daemon=True).start()
    try:
        return answer.result(DEADLINE_SECONDS)
    except TimeoutError:
        if answer.done():
            raise
        raise Hung(f"the filesystem has not answered for {DEADLINE_SECONDS:g} s") from None


def is_http(fs: AbstractFileSystem) -> bool:
    """Whether the objects of a filesystem are read by HTTP, as URLs."""
    return "http" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _local(path: str, most: int, start: int = 0, end: int | None = None) -> bytes:
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if end is None:
            refuse_larger(status.st_size, most)
            end = status.st_size + 1
        file.seek(start)
        data = file.read(end - start)
    if start + len(data) > status.st_size:
        raise OSError(f"{path} has grown while it was read")
    return data


def _size(fs: AbstractFileSystem, path: str) -> int | None:
    if isinstance(fs, AsyncFileSystem):
        entry = _synced(fs, lambda: fs._info(path))
    else:
        with os_errors():
            entry = within_deadline(lambda: fs.info(path))
    size: int | None = entry.get("size")
    return size


def _synced(fs: AsyncFileSystem, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """The result of a coroutine on the event loop of a filesystem, within the deadline."""
    with os_errors():
        return sync(fs.loop, start, timeout=DEADLINE_SECONDS)


async def _http(fs: Any, url: str, most: int, span: tuple[int, int] | None = None) -> bytes:
    """The body of an answer, or the part of it at `span`. It is asked for as it is, not packed.

    fsspec's own way reads a body of any length, whatever was asked for.
    """
    headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if span:
        headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    session = await fs.set_session()
    try:
        response = await session.get(fs.encode_url(url), **{**fs.kwargs, "headers": headers})
    except ValueError as error:
        raise PermissionError(f"this is not a URL: {error}") from error
    except Exception as error:  # there is no answer yet, only a connection that failed or an answer that is no HTTP
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    async with response:
        fs._raise_not_found_for_status(response, url)
        if span and response.status != HTTPStatus.PARTIAL_CONTENT:
            raise PermissionError("the server does not send parts of a file")
        refuse_larger(response.content_length, most)
        data = bytearray()
        async for chunk in response.content.iter_chunked(CHUNK):
            data += chunk
            refuse_larger(len(data), most)
        return bytes(data)
