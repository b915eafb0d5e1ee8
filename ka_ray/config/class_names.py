"""Class names in a config: a list, or a file in one of the forms in which training scripts write them."""

import ast
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ACCEPTED_FORMS = (
    "a text file with one name per line, or JSON or a Python literal: a list of names, "
    "{index: name} or {name: index}"
)
"""What a file of class names may contain, for messages and documentation."""


def normalise(name: str) -> str:
    """Return a class name in Unicode's composed form (NFC), in which names are compared.

    File systems and editors write an accented letter as one code point or as two; they look the same.

    Example:
        >>> normalise("cafe\\u0301") == "caf\\u00e9"
        True
    """
    return unicodedata.normalize("NFC", name)


def parse_names(text: str, path: Path) -> list[str]:
    """Parse the content of a file of class names.

    Args:
        text: The content: one name per line, or JSON or a Python literal with a list, ``{index: name}`` or
            ``{name: index}``. A byte order mark, blank lines and spaces around a name are ignored.
        path: The file, for the error message.

    Returns:
        The names in the order of the scores.

    Raises:
        ValueError: The content looks like JSON or a Python literal, but has none of these forms.
    """
    text = text.removeprefix("\ufeff").strip()
    if text[:1] not in ("[", "{"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        parsed = _parse_literal(text)
        return order_names(parsed)
    except (ValueError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path}: {error}; accepted: {ACCEPTED_FORMS}") from None


def _parse_literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return ast.literal_eval(text)  # builds only constants, and runs no code


def order_names(names: Any) -> list[str]:
    """Return class names in the order of the scores.

    Args:
        names: A list of names, a mapping of index -> name (an index may be text, as in JSON), or a mapping of
            name -> index.

    Raises:
        ValueError: It is something else, or the indices are not 0, 1, 2 and so on.
    """
    if isinstance(names, Mapping):
        by_index = _by_index(names)
        if sorted(by_index) != list(range(len(names))):
            raise ValueError(f"the indices must be 0 ... {len(names) - 1}, each once")
        names = [by_index[i] for i in range(len(by_index))]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("holds something else than class names")
    return [name.strip() for name in names]


def _by_index(names: Mapping[Any, Any]) -> dict[int, Any]:
    """Return index -> name of either kind of mapping."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in names.values()):
        return {index: name for name, index in names.items()}
    try:
        return {int(index): name for index, name in names.items()}
    except (TypeError, ValueError):
        raise ValueError("is a mapping, but neither of index -> name nor of name -> index") from None
