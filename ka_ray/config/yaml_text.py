"""YAML as configs and overrides are written in it."""

from typing import Any

import yaml

MAX_VALUES = 1_000_000
"""Largest number of values in a config."""


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Args:
        text: The content of a config, or the value of an override.

    Raises:
        ValueError: It is not YAML, or has more than :data:`MAX_VALUES` values; one that holds itself has
            no end of them.
    """
    try:
        parsed = yaml.safe_load(text)
    except Exception as error:  # dates, numbers and tags that do not exist raise types of their own
        raise ValueError(str(error) or repr(error)) from None
    waiting, count = [parsed], 0
    while waiting:
        value, count = waiting.pop(), count + 1
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if count > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values, or an anchor inside of itself")
    return parsed
