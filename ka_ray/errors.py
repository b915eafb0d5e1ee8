"""The exceptions whose message is for the user."""


class InputError(ValueError):
    """A bad config key, file or plan. The message says which, what it is, and what would be accepted."""


MEANT_FOR_USERS = (InputError, FloatingPointError)
"""What a user can mend, by other input or (where numbers are not finite) another rate: exit code 2."""
