"""Test progress output without a terminal, and how the lines of another process update the progress bars."""

import pytest

from ka_ray.terminal import progress as progress_module
from ka_ray.terminal.progress import Display


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock, and return a list with the time in seconds, which the test can change."""
    time = [100.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: time[0])
    return time


def test_a_long_stage_prints_a_line_every_half_minute(capsys, clock):
    with Display() as display, display.track_images("extract", 5000) as advance:
        for clock[0] in (110.0, 129.9, 130.1, 140.0, 161.0):
            advance(1000)
    assert capsys.readouterr().out.splitlines() == [
        "extract images=3000/5000 seconds=30.1 eta_s=20",
        "extract images=5000/5000 seconds=61.0 eta_s=0",
        "extract images=5000 seconds=61.0",
    ]


def test_a_short_stage_prints_one_line(capsys, clock):
    with Display() as display, display.track_images("tune", 3, "trials") as advance:
        clock[0] += 2
        advance(3)
    assert capsys.readouterr().out == "tune trials=3 seconds=2.0\n"


def test_forwarded_lines_are_printed_unchanged(capsys):
    lines = ["[red]not a colour[/red] :smile:", "extract images=1/2 seconds=1.0", "x" * 300, "", "  {'a': 1}"]
    with Display() as display:
        for line in lines:
            display.forward_line(line)
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("lines", "bars"),
    [
        (["extract images=1200/5000 seconds=30.1"], [("extract", 1200, 5000)]),
        (
            ["extract images=1200/5000 seconds=30.1", "extract images=5000 seconds=99.0"],
            [("extract", 1200, 5000), ("extract", 5000, 5000)],
        ),
        (
            ["direct scores.rule=max/codes epoch=2/6 images=10 seconds=1.0"],
            [("direct scores.rule=max/codes", 2, 6)],
        ),
        (["tune trials=4/48 seconds=30.1"], [("tune", 4, 48)]),
        (["extract images=5000 seconds=99.0", "a line, epoch=x", "images=1/2", "3 epochs=1/2"], []),
    ],
)
def test_forwarded_lines_update_the_progress_bars(monkeypatch, lines, bars):
    drawn = []

    def bar(self, stage, done, total, info):
        drawn.append((stage, done, total))
        self._shown.add(stage)

    monkeypatch.setattr(Display, "_bar", bar)
    display = Display()
    for line in lines:
        display.forward_line(line)
    assert drawn == bars


def test_a_display_parses_the_lines_that_another_display_prints(capsys, clock, monkeypatch):
    """Test that the format of printed lines is the one that is parsed."""
    with Display() as display, display.track_images("extract", 4) as advance:
        clock[0] += 31
        advance(2)
    drawn = []
    monkeypatch.setattr(Display, "_bar", lambda self, *bar: drawn.append(bar[:3]))
    Display().forward_line(capsys.readouterr().out.splitlines()[0])
    assert drawn == [("extract", 2, 4)]
