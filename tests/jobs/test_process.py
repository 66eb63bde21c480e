"""The last words of the process `asyrp`: an exit code, one sentence, and a traceback for a bug alone."""

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyrp.errors import MachineError
from tests.support.runs import ROOT, stand_in_run

PROCESS = [sys.executable, "-m", "jobs"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.runs import make_faces

    folder = tmp_path_factory.mktemp("finished")
    stand_in_run(make_faces(folder / "faces", 3), folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), 5, "free some space there"),
        (MachineError("the cluster is gone"), 5, "the cluster is gone; what is committed stays, and the same command"),
        (MemoryError(), 5, "the memory is used up"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_machine_did_is_one_sentence_and_no_traceback(cli, monkeypatch, finished_run, error, code, sentence):
    monkeypatch.setattr("jobs.cli.runs.read_state", raises(error))
    found, out, err = cli("status", finished_run)
    assert found == code and sentence in err and not out and "Traceback" not in err


def test_a_bug_is_a_traceback_and_a_last_sentence_that_says_so(cli, monkeypatch, finished_run):
    monkeypatch.setattr("jobs.cli.runs.read_state", raises(ZeroDivisionError("our fault")))
    code, _, err = cli("status", finished_run)
    assert code == 1 and "Traceback" in err and "our fault" in err
    assert err.splitlines()[-1].startswith("error: ZeroDivisionError: this is a bug of asyrp, please report it")


def raises(error: BaseException):
    def call(*_: object) -> None:
        raise error

    return call


def shell(line: str, root: Path) -> subprocess.CompletedProcess[str]:
    command = f"set -o pipefail; {' '.join(PROCESS)} {line.format(root=root)}"
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("status {root} | true", 141, ""),
        ("status {root} --json | true", 141, ""),
        ("status {root} >/dev/full", 5, "No space left on device"),
        ("status {root} --json >/dev/full", 5, "No space left on device"),
        ("status {root} >&-", 0, ""),
        ("status {root} <&- >&- 2>&-", 0, ""),
        ("status {root}/nowhere 2>/dev/full", 2, ""),
        ("status {root}/nowhere 2>&-", 2, ""),
    ],
)
def test_a_standard_stream_that_does_not_work_is_no_traceback(finished_run, line, code, says):
    done = shell(line, finished_run)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_nothing_is_computed_is_one_sentence(finished_run, number, tmp_path):
    copy = tmp_path / "out"
    subprocess.run(["cp", "-r", finished_run, copy], check=True)
    for commit in (copy / "commit" / "boost").iterdir():
        commit.unlink()
    watching = subprocess.Popen(
        [*PROCESS, "status", str(copy), "--watch"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None and watching.stdout.readline()
    watching.send_signal(number)
    _, err = watching.communicate(timeout=60)
    assert watching.returncode == 130 and "Traceback" not in err
    assert "stopped: what is committed stays" in err


def test_a_signal_while_modules_load_is_no_traceback():
    starting = subprocess.Popen(
        [*PROCESS, "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(0.3)
    starting.send_signal(signal.SIGINT)
    _, err = starting.communicate(timeout=60)
    assert "Traceback" not in err


ENDS_SLOWLY = """
import atexit, sys, time
atexit.register(lambda: (print("ending", file=sys.stderr, flush=True), time.sleep(1)))
from jobs.__main__ import main
sys.argv = ["asyrp", "--help"]
main()
"""


def test_a_signal_while_the_process_ends_changes_nothing():
    ending = subprocess.Popen(
        [sys.executable, "-c", ENDS_SLOWLY], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert ending.stderr is not None and ending.stderr.readline() == "ending\n"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        ending.send_signal(number)
    _, err = ending.communicate(timeout=60)
    assert (ending.returncode, err) == (0, "")


def test_a_terminal_that_is_closed_is_no_traceback(finished_run):
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [*PROCESS, "status", str(finished_run / "nowhere")], cwd=ROOT, stdout=terminal, stderr=terminal, stdin=terminal
    )
    os.close(terminal)
    os.close(master)
    assert process.wait(60) == 2
