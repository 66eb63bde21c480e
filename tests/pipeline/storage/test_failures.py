"""Errors of the machine, the cluster and stores are told from bugs, and are one sentence."""

import errno
import re

import aiohttp
import botocore.exceptions
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from asyrp.errors import MachineError
from jobs.runs.run import exit_code_of
from pipeline.storage.failures import is_full, machine_failure

MACHINE = [
    (OSError(errno.ENOSPC, "No space left on device", "/out/a.png"), r"device \(/out/a.png\): free some space"),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "the quota is used up"),
    (OSError(errno.EROFS, "Read-only file system", "x"), r"Read-only file system \(x\): make it writable"),
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (PermissionError(errno.EACCES, "Permission denied", "a", None, "b"), r"denied \(a -> b\): give this user the"),
    (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
    (OSError("cannot read https://x/?sig=hush\nand more"), r"https://x/\?sig=\*\*\*$"),
    (TimeoutError(), "TimeoutError"),
    (MemoryError(), "the memory is used up"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "the memory is used up: .* you tried"),
    (RuntimeError("can't start new thread"), "ulimit -u"),
    (botocore.exceptions.EndpointConnectionError(endpoint_url="https://x"), "EndpointConnectionError: Could not conn"),
    (aiohttp.ServerDisconnectedError(), "ServerDisconnectedError: Server disconnected"),
    (ActorDiedError(), "ActorDiedError: "),
    (MachineError("the cluster is gone"), "^the cluster is gone$"),
]


@pytest.mark.parametrize(("error", "sentence"), MACHINE)
def test_an_error_of_the_machine_or_a_store_is_one_sentence(error, sentence):
    said = machine_failure(error)
    assert said is not None and re.search(sentence, said) and "\n" not in said
    assert "hush" not in said and exit_code_of(error) == 5


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), RecursionError(), AssertionError(), RuntimeError("x")]
)
def test_a_bug_is_no_failure_of_the_machine(error):
    assert machine_failure(error) is None and exit_code_of(error) == 1


@pytest.mark.parametrize(("cause", "code"), [(OSError(errno.ENOSPC, "full"), 5), (ValueError("bug"), 1)])
def test_an_error_that_ray_brings_from_an_actor_is_judged_by_its_cause(cause, code):
    error = RayTaskError("run", "traceback", cause).as_instanceof_cause()
    assert exit_code_of(error) == code


def test_only_errors_that_come_back_at_every_attempt_say_that_the_machine_is_full():
    assert is_full(OSError(errno.ENOSPC, "full")) and is_full(OSError(errno.EROFS, "read-only"))
    assert not is_full(ConnectionResetError(errno.ECONNRESET, "reset")) and not is_full(ValueError("full"))
