"""The summary of a run begins with the verdict and fits on one small screen, whatever the run was."""

import json
from types import SimpleNamespace

import pytest

from ka_ray.terminal.results import print_result
from ka_ray.terminal.summary import MAX_LINES, is_as_good, show_report
from ka_ray.verbosity import Verbosity, verbosity_of_command


class Dumped(SimpleNamespace):
    def model_dump(self, mode):
        return {}


def make_report(
    teachers=2, warnings=0, gate=False, union=0.9, ensemble=0.94, tracked="sqlite:////x/mlflow.db"
):
    pair = SimpleNamespace(teacher=0.95, student=0.94)
    accuracy = Dumped(
        union=union,
        ensemble=ensemble,
        gate=SimpleNamespace(ensemble=ensemble) if gate else None,
        agreement=0.95,
        constant_agreement=0.1,
        images=5000,
        labelled=5000,
        per_teacher={f"teacher_{i}": pair for i in range(teachers)},
        unmatched={},
        missing=[],
    )
    size = SimpleNamespace(parameters=11_000_000_000, macs=1_000_000_000_000, bytes=44_000_000_000)
    return SimpleNamespace(
        name="many",
        classes=["a"] * 100,
        accuracy=accuracy,
        size=Dumped(teachers=size, student=size),
        warnings=[f"warning {i}: " + "some words " * 30 for i in range(warnings)],
        start=SimpleNamespace(source="average, aligned, ridge head " * 5),
        gate=SimpleNamespace(used="a gate that is learned from hints " * 5) if gate else None,
        mlflow=Dumped(tracking_uri=tracked),
    )


@pytest.mark.parametrize("teachers", [2, 5, 50])
@pytest.mark.parametrize("warnings", [0, 1, 7])
@pytest.mark.parametrize("gate", [False, True])
def test_the_summary_fits_on_24_lines_of_80_columns(monkeypatch, capsys, tmp_path, teachers, warnings, gate):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "pets"
    show_report(
        make_report(teachers, warnings, gate), folder, ["a.png", "b.png"], config=folder / "merge.yaml"
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "as good as the ensemble of its teachers: no (-4.0 points)"
    assert lines[1].startswith("verdict: The student is worse than ")
    assert len(lines) <= MAX_LINES
    assert max(len(line) for line in lines if not line.startswith(("browse:", "try:"))) <= 80
    assert "  student and ensemble agree" in "\n".join(lines)
    assert [line.split()[0] for line in lines[-5:]] == ["report:", "figures:", "config:", "browse:", "try:"]


@pytest.mark.parametrize(
    ("union", "answer", "as_good"),
    [
        (0.96, "yes (+2.0 points)", True),
        (0.94, "yes, within chance (0.0 points)", True),
        (None, "not known", None),
    ],
)
def test_the_first_line_answers_yes_or_no(monkeypatch, capsys, tmp_path, union, answer, as_good):
    monkeypatch.chdir(tmp_path)
    show_report(make_report(union=union), tmp_path)
    assert capsys.readouterr().out.splitlines()[0] == f"as good as the ensemble of its teachers: {answer}"
    with verbosity_of_command(Verbosity(json=True)):
        show_report(make_report(union=union), tmp_path)
    found = json.loads(capsys.readouterr().out)
    assert found["as_good_as_ensemble"] is as_good
    assert found["paths"]["output"] == str(tmp_path)
    assert found["verdict"]["sentence"]


def test_with_quiet_only_warnings_and_paths_are_printed(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with verbosity_of_command(Verbosity(quiet=True)):
        show_report(make_report(warnings=1), tmp_path / "x")
    shown = capsys.readouterr()
    assert shown.out == "report:  x/report.md\nfigures: x/figures\n"
    assert shown.err.startswith("warning: warning 0: some words")


@pytest.mark.parametrize(("paths", "shown"), [({}, "the result\n"), ({"table": "t.md"}, "table:   t.md\n")])
def test_with_quiet_a_command_without_files_prints_its_result(capsys, paths, shown):
    with verbosity_of_command(Verbosity(quiet=True)):
        print_result("the result", {}, paths)
    assert capsys.readouterr().out == shown


def test_a_verdict_is_yes_no_or_not_known():
    grades = ("better", "equal", "worse", "bad", "unmeasured")
    assert [is_as_good(SimpleNamespace(grade=grade)) for grade in grades] == [True, True, False, False, None]
