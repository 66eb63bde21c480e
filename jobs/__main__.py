"""The process `asyrp`, which is `python -m jobs` too: the command line between a quiet beginning and a quick end."""

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

LAST_SECONDS = 10.0
"""How long libraries may tidy up when the command has ended. A lost Ray cluster would keep the process for ever."""

FULL_STDOUT = 5

Handler = signal.Handlers | Callable[[int, FrameType | None], None]


def main() -> None:
    """Run the command line in this process, and end it.

    The process ends without C++ destructors. Threads that Ray and Arrow leave behind are not joined by them, and a
    command that had done all its work would now and then abort ("terminate called without an active exception").
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules load is no traceback
    _open_standard_streams()
    code = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        print(f"error: the output could not be written: {error.strerror}", file=sys.stderr)
        code = code or FULL_STDOUT
    _end(code)


def _run() -> int:
    from jobs.cli.app import Stopped
    from jobs.cli.app import main as command
    from pipeline.engine.signals import stop_signals

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        _on_signals(numbers, signal.SIG_DFL)  # the second one ends the process at once
        raise Stopped

    numbers = stop_signals()
    _on_signals(numbers, stop)
    try:
        command()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        _on_signals(numbers, signal.SIG_IGN)  # nothing is left to stop
    return 0


def _on_signals(numbers: list[signal.Signals], handler: Handler) -> None:
    for number in numbers:
        signal.signal(number, handler)


def _end(code: int) -> None:
    """End the process: let libraries tidy up for some seconds, and no longer."""
    tidy = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    tidy.start()
    tidy.join(LAST_SECONDS)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _open_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed, so that no file that is opened later gets its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")


if __name__ == "__main__":
    main()
