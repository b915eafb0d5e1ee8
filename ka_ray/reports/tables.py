"""Tables of a report in Markdown."""

from collections.abc import Iterable, Sequence

from ka_ray.reports.plain_text import escape_markdown


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. The first column is aligned to the left, the others to the right.

    Args:
        header: Titles of the columns.
        rows: One cell per column for each row. All cells are shown as they are, see :func:`escape_markdown`,
            except :class:`Markdown`; a ``|`` is escaped in these, too.
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    cells = ([escape_markdown(cell).replace("|", r"\|") for cell in row] for row in [header, *rows])
    lines = [next(cells), rule, *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_share(value: float | None) -> str:
    """Return a share in [0, 1] as text; None is one that was not measured."""
    return "not measured" if value is None else f"{value:.3f}"
