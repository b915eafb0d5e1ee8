"""Find what a misspelled key or value of a config was meant to be."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

LISTED_KEYS = 12
"""Largest number of keys that a message lists if none is near to the one that was given."""


def nearest(given: object, accepted: Iterable[str]) -> str | None:
    """Return the accepted word that is spelled most like the given one; None if none is.

    Args:
        given: What was given.
        accepted: The words that are accepted.

    Example:
        >>> nearest("epohcs", ["epochs", "batch_size"]), nearest("colour", ["epochs", "batch_size"])
        ('epochs', None)
    """
    words = {word.lower(): word for word in accepted}
    found = get_close_matches(str(given).lower(), words, n=1, cutoff=0.6)
    return words[found[0]] if found else None


def suggest(given: object, accepted: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message: the nearest accepted word, or all of them if there are few.

    Args:
        given: What was given.
        accepted: The words that are accepted.
        prefix: What stands before the word in a config, such as ``joint.``.

    Example:
        >>> suggest("epohcs", ["epochs", "batch_size"], "joint.")
        '; did you mean joint.epochs?'
    """
    words = list(accepted)
    best = nearest(given, words)
    if best is not None:
        return f"; did you mean {prefix}{best}?"
    return f"; there are {', '.join(words)}" if 0 < len(words) <= LISTED_KEYS else ""


def find_known_keys(kind: Any, path: Sequence[str | int]) -> list[str]:
    """Return the keys that a section of a config has.

    Args:
        kind: The class of the config, or the type of a section.
        path: The path of the section, as pydantic gives it: keys, indices, and tags of kinds of a section.
    """
    kinds = list(_kinds(kind))
    for part in path:
        below = [inner for one in kinds for inner in _below(one, part)]
        # What is no key is a tag: the name of the one kind that was chosen, or of a step of the validation.
        kinds = below or [one for one in kinds if _has_tag(one, part)] or kinds
    return list(dict.fromkeys(key for one in kinds for key in _keys(one)))


def find_words(text: str) -> list[str]:
    """Return the quoted words of a message of pydantic.

    Example:
        >>> find_words("'auto', 'random' or 'exact'")
        ['auto', 'random', 'exact']
    """
    return re.findall(r"'([^']*)'", text)


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that a value may have, without what annotates them."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for one in get_args(annotation):
            yield from _kinds(one)
    else:
        yield annotation


def _below(kind: Any, part: str | int) -> Iterator[Any]:
    """Yield the types that a key or an item of a section may have."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                yield from _kinds(field.annotation)
    elif origin in (tuple, list) and isinstance(part, int):
        for one in arguments:
            yield from _kinds(one)


def _has_tag(kind: Any, tag: str | int) -> bool:
    """Return whether a kind of an image source is the one that is called so."""
    field = kind.model_fields.get("source") if hasattr(kind, "model_fields") else None
    return field is not None and get_origin(field.annotation) is Literal and tag in get_args(field.annotation)


def _keys(kind: Any) -> Iterator[str]:
    fields: Mapping[str, Any] = getattr(kind, "model_fields", {})
    for name, field in fields.items():
        yield field.alias or name
