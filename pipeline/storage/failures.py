"""Tells errors that the machine, the cluster or a store has caused from bugs, and says them in one sentence."""

import errno
import os

from asyrp.errors import MachineError
from pipeline.storage.credentials import redacted

FULL = {
    errno.ENOSPC: "free some space there, or use a place that has more",
    errno.EDQUOT: "the quota is used up: delete something, or use another place",
    errno.EROFS: "make it writable, or use another place",
    errno.EMFILE: "raise the limit of open files with `ulimit -n`",
    errno.ENFILE: "the whole machine has too many open files: raise fs.file-max, or end something",
}
"""The errors that the next attempt would meet as well, and what to do about each."""

REMEDIES = {
    **FULL,
    errno.EACCES: "give this user the permission, or use another place",
    errno.EPERM: "give this user the permission, or use another place",
    errno.ENOMEM: "the memory is used up: end something, or use a smaller engine.batch_size",
    errno.EAGAIN: "the limit of processes and threads is reached: raise it with `ulimit -u`",
}
DRIVERS = {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "httpx", "ray", "s3fs"}
"""The packages whose errors come from a store or the cluster. They have no common base class."""

MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
"""What the RuntimeError of torch says when memory is used up. Its class is the same as that of other errors."""

TEXT_LENGTH = 500


def is_full(error: BaseException) -> bool:
    """Whether an error comes back at every attempt until somebody mends the machine, such as that of a full disk."""
    return isinstance(error, OSError) and error.errno in FULL


def machine_failure(error: BaseException) -> str | None:
    """One sentence on an error that the machine, the cluster or a store has caused; None for other errors.

    The error of a call that Ray made elsewhere is judged by its cause there.
    """
    if any(kind.__name__ == "RayTaskError" for kind in type(error).__mro__):
        cause = getattr(error, "cause", None)
        return machine_failure(cause) if isinstance(cause, BaseException) else None
    if isinstance(error, MachineError):
        return str(error)
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError) or _is_lack_of_memory(error):
        return f"the memory is used up: {REMEDIES[errno.ENOMEM].partition(': ')[2]} ({_said(error)})"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return f"this process may start no more threads: {REMEDIES[errno.EAGAIN]}"
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return f"{type(error).__name__}: {_said(error)}" if packages & DRIVERS else None


def _of_system(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = f" ({' -> '.join(map(redacted, names))})" if names else ""
    said = f"{error.strerror}{where}" if error.strerror else _said(error)
    remedy = REMEDIES.get(error.errno or 0)
    return f"{said}: {remedy}" if remedy else said


def _is_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY)


def _said(error: BaseException) -> str:
    """The first line of what an error says, without secrets; the name of its class if it says nothing."""
    lines = str(error).strip().splitlines()
    return redacted(lines[0])[:TEXT_LENGTH] if lines else type(error).__name__
