"""Write predictions as text, CSV or JSON Lines."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from ka_ray.terminal.results import escape_control

Form = Literal["text", "csv", "json"]
"""How predictions are written."""


class Ranked(Protocol):
    """A prediction: the path of the image, and the most probable classes with their probabilities."""

    @property
    def path(self) -> str:
        """The path of the image."""

    @property
    def top(self) -> tuple[tuple[str, float], ...]:
        """The most probable classes with their probabilities, the best one first."""


def make_writer(form: Form, top: int) -> Callable[[Ranked], None]:
    """Return a function that writes a prediction to standard output at once.

    Control characters in names are made visible as text and CSV, which may be shown on a terminal; JSON has
    escapes of its own.

    Args:
        form: ``text``: path, class and probability between tabs; ``csv``: the same with a header; ``json``:
            an object in each line.
        top: Largest number of classes per image.
    """
    if form == "json":
        return lambda one: _print(json.dumps(_to_object(one)))
    if form == "text":
        return lambda one: _print("\t".join(_to_cells(one, 3)))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    more = [name for rank in range(2, top + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    writer.writerow(["path", "class", "probability", *more])

    def write_row(one: Ranked) -> None:
        row: Sequence[str] = _to_cells(one, 6)
        writer.writerow([*row, *[""] * (1 + 2 * top - len(row))])
        sys.stdout.flush()

    return write_row


def _print(line: str) -> None:
    print(line, flush=True)


def _to_cells(one: Ranked, digits: int) -> list[str]:
    cells = [one.path, *(cell for name, value in one.top for cell in (name, f"{value:.{digits}f}"))]
    return list(map(escape_control, cells))


def _to_object(one: Ranked) -> dict[str, Any]:
    classes = [{"class": name, "probability": round(value, 6)} for name, value in one.top]
    return {"path": one.path, "predictions": classes}
