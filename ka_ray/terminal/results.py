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


def print_table(result: Any, folder: Path, name: str, **paths: str) -> None:
    """Print the table of a command, and where it is stored.

    Args:
        result: The result, which can be written as Markdown and as JSON.
        folder: The output folder.
        name: Name of the files in it.
        **paths: What else to show below the table.
    """
    files: dict[str, str | Path] = {"table": folder / f"{name}.md"}
    files |= {"figure": folder / "figures" / f"{name}.png", **paths}
    print_result(result.to_markdown(), result.model_dump(mode="json"), files)


def describe_teacher(name: str, accuracy: float | None, images: int, left_out: int) -> str:
    """Return the accuracy of a teacher that was trained, as a sentence.

    Args:
        name: The name of the teacher.
        accuracy: Its accuracy, in [0, 1]; None if no image of its classes has a label.
        images: Number of images that it was measured on.
        left_out: Number of images that were left out because their labels are no classes of the teacher.
    """
    others = f"; left out are {left_out} images of other classes" if left_out else ""
    return f"teacher {name}: accuracy {format_percent(accuracy)} on {images} images{others}"


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
