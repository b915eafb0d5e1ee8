"""Tables of a report in Markdown."""

from collections.abc import Iterable, Sequence


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. The first column is aligned to the left, the others to the right.

    Args:
        header: Titles of the columns.
        rows: One cell per column for each row. A ``|`` in a cell is escaped.
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rule, *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_share(value: float | None) -> str:
    """Return a share in [0, 1] as text; None is one that was not measured."""
    return "not measured" if value is None else f"{value:.3f}"
