"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence: what is wrong, where, and what to do."""
