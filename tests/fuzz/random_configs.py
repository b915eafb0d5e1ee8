"""Random configs: drawn from the schema of the config itself, and mutations of its template."""

import copy
import datetime
import random
from collections.abc import Sequence
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, "", " ", "a/b", "../up", "x" * 300, "caf\u00e9 \u2603", "a\nb", "a\0b", "$x$", "<b>",
    "*", ".", "..", "a.b", "-", "~nobody_here/x", "nowhere.txt", "null", "nan", "1e-3", "0x10", "training",
    "forward", "scores", "__class__", ".os:system", "os:system", ":", "json:", "a:b", "student", "nobody",
    "descriptive", "gopher://x/y", "s3://", "memory://x/y", "hf-hub:a", "timm/", "resnet18", "{}", "[1,",
    -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30, -(10**30), 0.0, -0.5, 0.5, 1.5, 1e-320, 1e-12, 1e12, 1e308,
    float("nan"), float("inf"), float("-inf"), [], {}, [None], [[]], [0, 0], ["a", "a"], ["", ""], {"": 1},
    {"a": None}, {"a": {"b": []}}, {"a/b": 1}, {"conv1": "conv1"}, {"energy": 2}, {"like": ""}, {1: 2},
    datetime.date(2026, 11, 27), b"bytes", list(range(1000)), [float("nan")] * 3, [1, 1, 1], [0.5],
)  # fmt: skip
"""Values that hardly any key takes."""

MAX_PIXELS = 4096
"""Largest size of an image in the schema."""

WORDS = (
    "low",
    "high",
    "conv1",
    "conv2",
    "plain",
    "digit_0",
    "digit_9",
    "label",
    "image",
    "path",
    "run",
    "cpu",
)
"""Text that some key takes: names of teachers, taps, networks, classes and columns."""


class ConfigMaker:
    """Makes random configs.

    Args:
        schema: JSON schema of the config.
        bases: Valid configs that mutations start from.
        paths: Paths of files and folders, for keys that take one.
        seed: Seed of all random choices.
    """

    def __init__(
        self, schema: dict[str, Any], bases: Sequence[dict[str, Any]], paths: Sequence[str], seed: int
    ) -> None:
        self._schema, self._bases, self._paths = schema, bases, paths
        self._random = random.Random(seed)

    def make(self) -> tuple[dict[str, Any], str]:
        """Return a config with one to four mutations, and what they are."""
        tree, changes = copy.deepcopy(self._random.choice(self._bases)), []
        kinds = [self._set_by_schema, self._replace_anywhere, self._remove, self._add, self._swap]
        for _ in range(self._random.choice((1, 1, 2, 2, 3, 4))):
            (change,) = self._random.choices(kinds, weights=(6, 3, 1, 1, 1))
            changes.append(change(tree))
        return tree, "; ".join(changes)

    def _set_by_schema(self, tree: dict[str, Any]) -> str:
        """Walk down the schema, and set what is there to a value of its type, or to a hostile one."""
        node, schema, keys = tree, self._schema, list[str]()
        while True:
            schema = self._resolve(schema)
            key, below = self._choose_child(node, schema)
            keys.append(str(key))
            inner = self._alternative(below)
            current = node.get(key) if isinstance(node, dict) else node[key]
            has_children = inner.get("type") in ("object", "array") and isinstance(current, dict | list)
            if has_children and current and self._random.random() < 0.9:
                node, schema = current, inner
                continue
            if inner.get("properties") and isinstance(node, dict) and self._random.random() < 0.7:
                node[key] = {} if not isinstance(current, dict) else current
                node, schema = node[key], inner
                continue
            value = self._value(below) if self._random.random() < 0.6 else self._random.choice(HOSTILE)
            node[key] = copy.deepcopy(value)
            return f"{'.'.join(keys)} = {value!r:.80}"

    def _choose_child(self, node: Any, schema: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if isinstance(node, list):
            index = self._random.randrange(len(node))
            items = schema.get("prefixItems", [])
            return index, items[index] if index < len(items) else schema.get("items", {})
        properties = schema.get("properties")
        if properties:
            key = self._random.choice(list(properties))
            return key, properties[key]
        values = schema.get("additionalProperties")
        return self._random.choice([*node, self._text()]), values if isinstance(values, dict) else {}

    def _value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """Draw a value that a schema takes; patterns and rules between keys are not looked at."""
        schema = self._alternative(schema)
        if "enum" in schema or "const" in schema:
            return self._random.choice(schema.get("enum", [schema.get("const")]))
        kind = schema.get("type")
        if kind == "object":
            return self._mapping(schema, depth)
        if kind == "array":
            items = schema.get("prefixItems") or [schema.get("items", {})] * self._random.randrange(4)
            return [self._value(item, depth + 1) for item in items]
        if kind in ("integer", "number"):
            return self._number(schema, kind == "integer")
        if kind == "boolean":
            return self._random.random() < 0.5
        if kind == "null":
            return None
        return self._text() if kind == "string" else self._random.choice([*self._paths, self._text(), 1])

    def _mapping(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        share = 0.3 if depth < 3 else 0.0
        chosen = [key for key in properties if key in required or self._random.random() < share]
        drawn = {key: self._value(properties[key], depth + 1) for key in chosen}
        values = schema.get("additionalProperties")
        if isinstance(values, dict) or values is True:
            keys = [self._text() for _ in range(self._random.randrange(3))]
            drawn |= {key: self._value(values if isinstance(values, dict) else {}, depth + 1) for key in keys}
        return drawn

    def _number(self, schema: dict[str, Any], integer: bool) -> Any:
        """Draw a number at or near the limits of a schema, or somewhere between."""
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        most = schema.get("maximum", schema.get("exclusiveMaximum", least + self._random.choice((1, 8, 1e6))))
        if most == MAX_PIXELS:
            most = 64  # larger images are planned in the same way, and take minutes
        between = self._random.uniform(least, most)
        drawn = self._random.choice((least, most, between, between, least + 1, least - 1, most + 1))
        return round(drawn) if integer else drawn

    def _text(self) -> str:
        hostile = [value for value in HOSTILE if isinstance(value, str)]
        return self._random.choice(WORDS if self._random.random() < 0.6 else hostile)

    def _alternative(self, schema: dict[str, Any]) -> dict[str, Any]:
        while options := schema.get("anyOf") or schema.get("oneOf"):
            # A section with rules between its keys has alternatives that only say which keys are required.
            if any("required" in option for option in options):
                break
            schema = self._resolve(self._random.choice(options))
        schema = self._resolve(schema)
        if isinstance(schema.get("type"), list):  # a section, or text instead: hostile values are text, too
            return {**schema, "type": schema["type"][0]}
        return schema

    def _resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self._schema["$defs"][schema["$ref"].rpartition("/")[2]]
        return schema

    def _places(self, node: Any) -> list[tuple[Any, Any]]:
        """List every container and key of a tree."""
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        return [(node, key) for key in keys] + [place for key in keys for place in self._places(node[key])]

    def _replace_anywhere(self, tree: dict[str, Any]) -> str:
        node, key = self._random.choice(self._places(tree))
        node[key] = copy.deepcopy(value := self._random.choice(HOSTILE))
        return f"any {key} = {value!r:.80}"

    def _remove(self, tree: dict[str, Any]) -> str:
        node, key = self._random.choice(self._places(tree))
        del node[key]
        return f"without {key}"

    def _add(self, tree: dict[str, Any]) -> str:
        mappings = [tree, *(node[key] for node, key in self._places(tree) if isinstance(node[key], dict))]
        key, value = self._random.choice(HOSTILE[:45]), self._random.choice(HOSTILE)
        self._random.choice(mappings)[key] = copy.deepcopy(value)
        return f"extra {key!r:.40} = {value!r:.40}"

    def _swap(self, tree: dict[str, Any]) -> str:
        """Put what one key has under another one."""
        (a, key), (b, other) = (
            self._random.choice(self._places(tree)),
            self._random.choice(self._places(tree)),
        )
        b[other] = copy.deepcopy(a[key])
        return f"{other} = that of {key}"
