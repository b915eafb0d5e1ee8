"""The ranges of numbers and names that several keys of a config share.

The largest values are far beyond any sensible one. They are there for typing errors, which would otherwise
end in a full memory, an overflow, or a file name that no file system takes.
"""

from typing import Annotated, Any

from pydantic import Field

MAX_SEED = 2**32 - 1

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
"""A seed of random choices; numpy, torch and Optuna all take these."""

Count = Annotated[int, Field(ge=1, le=10**9)]
"""A number of images, epochs, processes or channels, at least one."""

CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
"""The same, or zero."""

Pixels = Annotated[int, Field(ge=1, le=4096)]
"""Height and width of a network's input, in pixels."""

Rate = Annotated[float, Field(gt=0, le=1e3)]
"""A learning rate."""

Positive = Annotated[float, Field(ge=1e-12, le=1e12)]
"""A number above zero that float32 can divide by."""

PositiveOrZero = Annotated[float, Field(ge=0, le=1e12)]
"""The same, or zero."""

MAX_NAME_LENGTH = 100
"""Largest number of characters of a name that becomes part of file names, which end at 255 bytes."""

MAX_TEXT_LENGTH = 4096
"""Largest number of characters of any text, as that of a path."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$", max_length=MAX_NAME_LENGTH)]
"""A name that is a part of file names, columns and keys."""

Text = Annotated[str, Field(min_length=1)]
"""Text that may not be empty."""


def find_flag(value: Any, annotation: Any) -> bool:
    """Return whether true or false stands where a key takes numbers or text; Python counts them as 1 and 0.

    Args:
        value: The value of a key, as it was read.
        annotation: The type of the key, such as ``int | None``.
    """
    kinds = str(annotation)
    if annotation is bool or any(kind in kinds for kind in ("bool", "Any", "Literal")):
        return False
    parts = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(value, dict) and "dict[" in kinds:  # not a section, whose keys have types of their own
        parts = list(value.values())
    return any(isinstance(part, bool) for part in parts)
