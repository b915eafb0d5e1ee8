"""Test that names are printed as they are: no markup, no control characters."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ka_ray import cli_student
from ka_ray.errors import EXIT_INTERRUPTED, InputError, run_with_exit_code
from ka_ray.terminal.progress import Display
from ka_ray.terminal.summary import show_report

NAME = "[bold]cat[/bold] [/red] :smile: \x1b[2J\x1b]0;title\x07"
SHOWN = r"[bold]cat[/bold] [/red] :smile: \x1b[2J\x1b]0;title\x07"


def test_notes_and_progress_lines_show_names_as_they_are(capsys):
    with Display() as display:
        display.note(NAME)
        with display.track_images(f"evaluate {NAME}", 3):
            pass
    first, second = capsys.readouterr().out.splitlines()
    assert first == SHOWN
    assert second.startswith(f"evaluate {SHOWN} images=0 seconds=")


def test_the_summary_of_a_run_shows_names_as_they_are(capsys, tmp_path):
    size = SimpleNamespace(parameters=1, macs=1, bytes=1)
    pair = SimpleNamespace(teacher=0.5, student=0.5)
    accuracy = SimpleNamespace(
        union=0.5,
        ensemble=0.5,
        gate=None,
        agreement=0.5,
        constant_agreement=0.25,
        images=4,
        labelled=4,
        per_teacher={"[red]low[/red]": pair},
        unmatched={},
        missing=[],
    )
    report = SimpleNamespace(
        name="[green]run",
        classes=["a"],
        accuracy=accuracy,
        size=SimpleNamespace(teachers=size, student=size),
        warnings=[f"the class {NAME} was never predicted"],
        start=SimpleNamespace(source=NAME),
        gate=None,
        mlflow=SimpleNamespace(tracking_uri=None),
    )
    show_report(report, tmp_path / "[blue]folder", [tmp_path / "a b.png"])  # type: ignore[arg-type]
    said = capsys.readouterr().out.replace("\n         ", " ")  # long lines are wrapped
    assert f"warning: the class {SHOWN} was never predicted" in said
    assert f"start:   {SHOWN}" in said
    assert "classes of [red]low[/red]" in said
    assert "ka-ray predict '" in said  # the folder's name is quoted for the shell
    assert f"[blue]folder' '{tmp_path}/a b.png'" in said
    assert "[green]run: 1 classes" in said
    assert "[blue]folder/report.md" in said
    assert "report.html" not in said  # none was written
    assert said.index("verdict: ") < said.index("warning: ")
    assert "\x1b" not in said


def test_predict_prints_one_line_per_image(monkeypatch, capsys):
    prediction = SimpleNamespace(path=Path("a\tb.png").name, top=(("cat\ndog\x1b[31m", 0.5),))
    stream = lambda *arguments, **options: iter([prediction])  # noqa: E731
    monkeypatch.setattr("ka_ray.stream_predictions", stream, raising=False)
    cli_student.predict("run", ["a.png"])
    assert capsys.readouterr().out == "a\\tb.png\tcat\\ndog\\x1b[31m\t0.500\n"


@pytest.mark.parametrize("text", ["plain", "two\nlines\tand a tab", "\x1b[31mred\x9b"])
def test_an_error_shows_control_characters_but_keeps_its_lines(capsys, text):
    def fail() -> None:
        raise InputError(text)

    assert run_with_exit_code(fail) == 2
    said = capsys.readouterr().err
    assert said == f"error: {text}\n".replace("\x1b", r"\x1b").replace("\x9b", r"\x9b")
    assert sys.stderr is not None


def test_a_command_that_was_stopped_says_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as ended:
        run_with_exit_code(lambda: sys.exit(EXIT_INTERRUPTED))
    assert ended.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "stopped; a command with an output folder goes on if it is run again\n"
