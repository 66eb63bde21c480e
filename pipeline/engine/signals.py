"""The signals that ask a process to stop."""

import signal


def stop_signals() -> list[signal.Signals]:
    """SIGTERM, Ctrl-C, and the SIGHUP of a closed terminal, unless `nohup` has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT] if ignored else [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
