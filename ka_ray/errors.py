"""Errors with one clear message for the user."""


class InputError(ValueError):
    """Something the user gave cannot work; the message says what, and what would be accepted."""


class ClusterError(RuntimeError):
    """Machines failed, not the input: what was done is kept, and the same command goes on from there."""
