"""Draw the figures of a command; a figure that fails must not cost the student and the report."""

from collections.abc import Callable, Iterable
from pathlib import Path


def draw_or_notify(
    draw: Callable[[], Iterable[Path]], folder: Path, notify: Callable[[str], None]
) -> list[Path]:
    """Draw figures; if that fails, say so and go on.

    Args:
        draw: Draws the figures and returns their files.
        folder: The folder of the figures, for the message.
        notify: Called with the message: a full disk, for example.

    Returns:
        The files that were drawn; empty if that failed.
    """
    return write_or_notify(draw, f"figures are missing in {folder}", notify)


def write_or_notify(
    write: Callable[[], Iterable[Path]], missing: str, notify: Callable[[str], None]
) -> list[Path]:
    """Write files that present a finished run; if that fails, say so and go on.

    Args:
        write: Writes the files and returns them.
        missing: What is missing if it fails, for the message.
        notify: Called with the message.

    Returns:
        The files that were written; empty if that failed.
    """
    try:
        return list(write())
    except Exception as error:  # matplotlib raises many kinds; the results are on disk already
        notify(f"{missing} ({type(error).__name__}: {error}); run the command again")
        return []
