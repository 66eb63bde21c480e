"""Defines the exception whose message is written for the user."""


class UserError(Exception):
    """A mistake that the user can correct. Its message is one sentence: what is wrong, where, and what to do."""
