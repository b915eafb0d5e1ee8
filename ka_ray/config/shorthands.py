"""What configs accept beside the types of their keys, for the JSON schema: null, text, keys left out."""

from collections.abc import Callable
from typing import Any

SchemaHook = Callable[[dict[str, Any]], None]
"""Changes the JSON schema of a section in place."""


def accept_null(*keys: str) -> SchemaHook:
    """Return a hook by which keys may be null, see :func:`ka_ray.config.base.drop_nulls`.

    Args:
        keys: Keys of the section, whose defaults the config chooses if they are null.
    """

    def change(schema: dict[str, Any]) -> None:
        for key in keys:
            given = schema["properties"][key]
            kept = {name: given.pop(name) for name in ("default", "description") if name in given}
            schema["properties"][key] = {"anyOf": [given, {"type": "null"}], **kept}

    return change


def accept_source(schema: dict[str, Any]) -> None:
    """Accept the source of a model instead of the section; `name` may be left out beside the key `from`.

    Args:
        schema: The JSON schema of the section, changed in place.
    """
    schema["type"] = ["object", "string"]
    if "name" in schema.get("required", ()):
        schema["required"].remove("name")
        schema["anyOf"] = [{"required": ["name"]}, {"required": ["from"]}]
        accept_null("name")(schema)


def accept_without(key: str) -> SchemaHook:
    """Return a hook by which a required key may be left out, because it can have a value from elsewhere.

    Args:
        key: A key of the section.
    """

    def change(schema: dict[str, Any]) -> None:
        schema["required"] = [name for name in schema.get("required", ()) if name != key]

    return change


def accept_one(schema: dict[str, Any]) -> None:
    """Accept a single item instead of a list, and null instead of an empty one.

    Args:
        schema: The JSON schema of the key, changed in place.
    """
    items = schema.pop("items")
    schema.pop("type")
    schema["anyOf"] = [{"type": "array", "items": items}, items, {"type": "null"}]
