"""Test that a figure that cannot be drawn does not end a command whose results are on disk."""

import errno
from pathlib import Path

import pytest

from ka_ray.runs.figures import draw_or_notify, write_or_notify


def test_figures_that_are_drawn_are_returned_and_nothing_is_said(tmp_path):
    notes: list[str] = []
    assert draw_or_notify(lambda: iter([tmp_path / "a.png"]), tmp_path, notes.append) == [tmp_path / "a.png"]
    assert notes == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("unknown symbol $x")]
)
def test_a_figure_that_fails_is_a_message(tmp_path, error):
    def draw() -> list[Path]:
        raise error

    notes: list[str] = []
    assert draw_or_notify(draw, tmp_path, notes.append) == []
    assert notes == [
        f"figures are missing in {tmp_path} ({type(error).__name__}: {error}); run the command again"
    ]


def test_a_fault_in_the_middle_is_a_message_too(tmp_path):
    def draw():
        yield tmp_path / "a.png"
        raise OSError(errno.ENOSPC, "No space left on device")

    notes: list[str] = []
    assert draw_or_notify(draw, tmp_path, notes.append) == []
    assert len(notes) == 1


def test_a_page_that_fails_says_what_is_missing(tmp_path):
    def write() -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")

    notes: list[str] = []
    assert write_or_notify(write, "run/report.html is missing", notes.append) == []
    (note,) = notes
    assert note.startswith("run/report.html is missing (OSError: [Errno 28] No space left on device); run")
