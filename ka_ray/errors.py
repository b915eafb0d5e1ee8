"""The one exception that means: the user gave something that cannot work."""


class InputError(ValueError):
    """A bad config key, file or plan. The message says which, what it is, and what would be accepted."""
