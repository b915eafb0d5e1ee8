"""Say what is wrong with a config: the key as the user wrote it, the mistake, and what was probably meant."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ka_ray.config.spelling import find_known_keys, find_words, suggest
from ka_ray.storage.uris import CREDENTIALS_PATTERN

MAX_PROBLEMS = 20
"""Largest number of mistakes that an error message lists."""


def explain_problems(kind: Any, place: str, tree: Mapping[str, Any], error: ValidationError) -> str:
    """Return the message for a config that cannot work.

    Args:
        kind: The class of the config, or the type of a section.
        place: The path of the file, or what else names the config.
        tree: The config as it was given.
        error: What pydantic has found.
    """
    lines = [f"{place}: {error.error_count()} problem(s)"]
    for problem in error.errors()[:MAX_PROBLEMS]:
        lines.append(f"  {_explain(kind, tree, problem)}")
    if error.error_count() > MAX_PROBLEMS:
        lines.append(f"  and {error.error_count() - MAX_PROBLEMS} more")
    return "\n".join(lines)


def _explain(kind: Any, tree: Mapping[str, Any], problem: Any) -> str:
    """Return the line of one mistake."""
    loc, name, value = problem["loc"], problem["type"], problem["input"]
    keys = _written_keys(tree, loc, is_about_key=name in ("extra_forbidden", "missing"))
    message = problem["msg"].removeprefix("Value error, ")
    if name == "extra_forbidden":
        section = "".join(f"{key}." for key in keys[:-1])
        message = f"unknown key{suggest(loc[-1], find_known_keys(kind, loc[:-1]), section)}"
    elif name == "literal_error":
        message += _meant(value, find_words(problem["ctx"]["expected"]))
    elif name == "union_tag_invalid":  # the kind of an image source
        keys, accepted = [*keys, "source"], find_words(problem["ctx"]["expected_tags"])
        value = value.get("source") if isinstance(value, Mapping) else value
        message = f"must be one of {problem['ctx']['expected_tags']}{_meant(value, accepted)}"
    elif name == "union_tag_not_found" and isinstance(value, Mapping):
        keys, message = [*keys, "source"], f"is missing{_misspelled(value, ['source'])}"
    elif name == "missing" and isinstance(value, Mapping):
        message += _misspelled(value, [str(loc[-1])])
    elif _is_free_key(tree, loc) and loc[-1] not in (known := find_known_keys(kind, loc[:-2])):
        # It was taken for the name of a tap, and may be the key of a rule.
        message += suggest(loc[-1], known, "".join(f"{key}." for key in keys[:-1]))
    given = f" (given: {value!r})" if _is_short(value) and not CREDENTIALS_PATTERN.search(repr(value)) else ""
    return f"{'.'.join(keys)}{': ' if keys else ''}{message}{given}"


def _meant(given: Any, accepted: list[str]) -> str:
    """Return the nearest accepted word as the end of a message; empty if none is near."""
    end = suggest(given, accepted)
    return end if end.startswith("; did") else ""


def _misspelled(section: Mapping[Any, Any], wanted: list[str]) -> str:
    """Return the key of a section that was probably meant to be one that is missing."""
    found = [str(key) for key in section if _meant(key, wanted)]
    return f"; is it {found[0]}?" if found else ""


def _written_keys(tree: Any, loc: tuple[Any, ...], is_about_key: bool) -> list[str]:
    """Return only the keys that the user wrote; pydantic adds the names of union members to the location."""
    keys = []
    for place, part in enumerate(loc):
        last = place == len(loc) - 1
        # A tag may be called like a key of its section; the next part is then a key of the same section.
        is_tag = not last and _has(tree, part) and not isinstance(tree[part], dict | list)
        if _has(tree, part) and not (is_tag and _has(tree, loc[place + 1])):
            tree = tree[part]
        elif not last or not isinstance(tree, dict) or not is_about_key:
            continue
        keys.append(str(part))
    return keys


def _is_free_key(tree: Any, loc: tuple[Any, ...]) -> bool:
    """Return whether a location is that of a key below the tag of a kind of section, such as ``taps``."""
    for part in loc[:-2]:
        tree = tree[part] if _has(tree, part) else tree
    return len(loc) > 1 and isinstance(tree, dict) and loc[-2] not in tree and loc[-1] in tree


def _has(tree: Any, part: Any) -> bool:
    if isinstance(tree, list):
        return isinstance(part, int) and part < len(tree)
    return isinstance(tree, dict) and part in tree


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict) and len(repr(value)) <= 80
