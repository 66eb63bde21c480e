"""Defines the exceptions whose message is written for the user."""


class UserError(Exception):
    """A mistake that the user can correct. Its message is one sentence: what is wrong, where, and what to do."""


class MachineError(Exception):
    """The machine, the cluster or the store failed under way. Nothing is wrong with the command: it goes on when it is
    given again. The message is one sentence: what failed, where, and what to do."""
