"""Write a config as YAML with comments."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

import yaml

LINE_WIDTH = 100
"""Width of comments in characters."""


def render_config(tree: Mapping[str, Any], comments: Mapping[str, Sequence[str]]) -> str:
    """Return a config as YAML.

    Args:
        tree: The config as a mapping, in types of JSON.
        comments: Dotted key, such as ``teachers.0`` or ``images.size`` -> paragraphs of text above it. The
            empty key is the top of the file, and ``end`` its end.

    Returns:
        The text. Read as YAML, it is the same mapping.

    Example:
        >>> print(render_config({"name": "pets", "images": {"size": 64}}, {"images.size": ["assumed"]}))
        name: pets
        <BLANKLINE>
        images:
          # assumed
          size: 64
        <BLANKLINE>
    """
    lines = list(_comment(comments.get("", ())))
    for key, value in tree.items():
        # A blank line before each section, none between single values.
        if isinstance(value, dict | list) or comments.get(str(key)):
            lines.append("")
        lines += _emit(key, value, str(key), comments)
    end = list(_comment(comments.get("end", ())))
    return "\n".join([*lines, *([""] if end else []), *end, ""]).lstrip("\n")


def _emit(key: Any, value: Any, path: str, comments: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the lines of one key, without indentation."""
    yield from _comment(comments.get(path, ()))
    if isinstance(value, dict) and value:
        yield f"{_on_one_line(key)}:"
        for inner, item in value.items():
            yield from (f"  {line}" for line in _emit(inner, item, f"{path}.{inner}", comments))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield f"{_on_one_line(key)}:"
        for number, item in enumerate(value):
            yield from (f"  {line}" for line in _emit_item(item, f"{path}.{number}", comments))
    else:
        yield f"{_on_one_line(key)}: {_on_one_line(value)}"


def _emit_item(item: Any, path: str, comments: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the lines of one item of a list, whose first key stands behind the dash."""
    yield from _comment(comments.get(path, ()))
    if not isinstance(item, dict) or not item:
        yield f"- {_on_one_line(item)}"
        return
    lines = [line for key, value in item.items() for line in _emit(key, value, "", {})]
    yield f"- {lines[0]}"
    yield from (f"  {line}" for line in lines[1:])


def _on_one_line(value: Any) -> str:
    """Return a value in YAML's flow style, in which lists and mappings stand on one line."""
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.rstrip("\n")[1:-1]


def _comment(paragraphs: Sequence[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        for line in paragraph.split("\n"):
            # A line break in the name of a class would end the comment.
            shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
            indent = " " * (len(shown) - len(shown.lstrip()))
            text = wrap(shown.strip(), LINE_WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")
            yield from (f"# {part}" for part in text or [""])
