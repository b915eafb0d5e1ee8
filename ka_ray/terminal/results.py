"""Print the result of a command in the form that was asked for: text, only paths, or one JSON object."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ka_ray.errors import CONTROL_CHARACTERS
from ka_ray.verbosity import verbosity


def print_result(
    text: str, figures: Mapping[str, Any], paths: Mapping[str, Path | str], warnings: Sequence[str] = ()
) -> None:
    """Print the result of a command; with ``--quiet`` only the paths, if there are any.

    Args:
        text: The result for people; it already shows the warnings. Empty: only the paths are shown.
        figures: The same for programs; values that JSON does not know are written as text.
        paths: What each file or folder is -> its path.
        warnings: What the user should see even with ``--quiet``.
    """
    chosen = verbosity()
    if chosen.json:
        content = {**figures, "paths": {name: str(path) for name, path in paths.items()}}
        print(json.dumps(content, indent=2, default=str))
        return
    if chosen.quiet:
        for warning in warnings:
            print(f"warning: {escape_control(warning)}", file=sys.stderr)
    if text and not (chosen.quiet and paths):
        print(text)
    for name, path in paths.items():
        print(f"{name + ':':<8} {path}")


def escape_control(text: str) -> str:
    r"""Return a text on one line whose control characters are visible: names of files may hold some.

    Example:
        >>> print(escape_control("two\nlines"), escape_control("\x1b[2J"))
        two\nlines \x1b[2J
    """
    return text.translate(CONTROL_CHARACTERS | {ord("\n"): r"\n", ord("\t"): r"\t"})


def format_percent(share: float | None) -> str:
    """Format a share as a percentage; None, i.e. not measured, becomes a dash.

    Example:
        >>> format_percent(0.9375), format_percent(None)
        ('93.8 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"
