"""Damage to files: what disks, interrupted copies and wrong tools do, and JSON with other values."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, "", "x", "../../x", -1, 0, 10**30, 0.5, float("nan"), [], {}, [None], {"a": 1}, ["a", "a"],
    [[1]],
)  # fmt: skip
"""Values that replace others in JSON."""


def damage(path: Path, others: list[bytes], choices: random.Random) -> str:
    """Damage a file in place, and return how.

    Args:
        path: The file.
        others: Contents of files of other kinds.
        choices: The source of all random choices.
    """
    content = path.read_bytes()
    kinds: list[Callable[[bytes, random.Random], bytes]] = [_truncate, _flip_bits, _zero_block, _duplicate]
    if _parse(content) is not None:
        kinds += [_mutate_json] * 6
    kind = choices.choice([*kinds, _empty, _random_bytes, _foreign])
    changed = choices.choice(others) if kind is _foreign else kind(content, choices)
    path.write_bytes(changed)
    return f"{path.name}: {kind.__name__.strip('_')}, {len(content)} -> {len(changed)} bytes"


def _truncate(content: bytes, choices: random.Random) -> bytes:
    return content[: choices.randrange(max(1, len(content)))]


def _flip_bits(content: bytes, choices: random.Random) -> bytes:
    """Flip a few bits, half of the time among the first bytes, where most formats describe themselves."""
    changed = bytearray(content)
    end = choices.choice((len(changed), min(len(changed), 200)))
    for _ in range(choices.choice((1, 2, 8, 64))):
        changed[choices.randrange(end)] ^= 1 << choices.randrange(8)
    return bytes(changed)


def _zero_block(content: bytes, choices: random.Random) -> bytes:
    start, length = choices.randrange(len(content)), choices.choice((4, 64, 512, 4096))
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def _duplicate(content: bytes, choices: random.Random) -> bytes:
    start = choices.randrange(len(content))
    return content[:start] + content[start : start + 64] + content[start:]


def _empty(_: bytes, __: random.Random) -> bytes:
    return b""


def _random_bytes(content: bytes, choices: random.Random) -> bytes:
    return choices.randbytes(choices.choice((1, 16, len(content))))


def _foreign(content: bytes, _: random.Random) -> bytes:
    return content


def _parse(content: bytes) -> Any:
    try:
        parsed = json.loads(content)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict | list) else None


def _mutate_json(content: bytes, choices: random.Random) -> bytes:
    """Remove, add or replace one value of a JSON file, at any depth."""
    tree = _parse(content)
    places = _places(tree)
    kind = choices.choice(("remove", "replace", "replace", "replace", "add", "whole"))
    if kind == "whole" or not places:
        tree = copy.deepcopy(choices.choice(VALUES))
    else:
        node, key = choices.choice(places)
        if kind == "remove":
            del node[key]
        elif kind == "add" and isinstance(node, dict):
            node["another key"] = choices.choice(VALUES)
        else:
            node[key] = choices.choice(VALUES)
    return json.dumps(tree).encode()


def _places(node: Any) -> list[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    return [(node, key) for key in keys] + [place for key in keys for place in _places(node[key])]
