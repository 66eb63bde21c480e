"""Defines the exceptions whose message is written for the user."""

import re

_LINE_BREAK = re.compile(r"\s*\n(?!  )\s*")


class UserError(Exception):
    """A mistake that the user can correct. Its message is one sentence: what is wrong, where, and what to do.

    The texts of other errors in it may have line breaks, which become spaces. Only lines that begin with two spaces
    stay lines: they list what the sentence is about.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_LINE_BREAK.sub(" ", message).strip())


class MachineError(Exception):
    """The machine, the cluster or the store failed under way. Nothing is wrong with the command: it goes on when it is
    given again. The message is one sentence: what failed, where, and what to do."""
