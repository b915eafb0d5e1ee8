"""Print the results of a finished run on one screen of the command line: the verdict first."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ka_ray.terminal.results import escape_control, format_percent, print_result
from ka_ray.verbosity import verbosity

if TYPE_CHECKING:
    from ka_ray.reports.report import Report
    from ka_ray.reports.sections import Accuracy
    from ka_ray.reports.verdict import Verdict

MAX_LINES = 24
"""Number of lines of a small terminal, on which the whole summary must fit."""

MAX_WARNINGS = 2
"""Number of warnings that the summary shows, on two lines each; the report has all of them."""

MIN_WIDTH, MAX_WIDTH = 60, 110
"""Limits of the width of the summary, in characters."""


def find_program(name: str) -> str:
    """Return what to type to call an installed program: its name, or its path if PATH does not have it."""
    # Programs of a virtual environment that is not activated are beside its Python.
    installed = Path(sys.executable).parent / name
    return name if shutil.which(name) or not installed.exists() else os.path.relpath(installed)


def next_command(config: Path) -> str:
    """Return the command that runs a config which a search has written."""
    return f"{find_program('ka-ray')} run {shlex.quote(str(config))}"


def show_report(
    report: "Report", folder: Path, images: Sequence[str | Path] = ("IMAGE...",), **paths: str | Path
) -> None:
    """Print the results of a run, and what to do with them.

    Args:
        report: The run's report.
        folder: The run's output folder.
        images: Image files for the suggested ``ka-ray predict`` command.
        **paths: Further files that the command has written.
    """
    from ka_ray.reports.verdict import judge  # here, so that other commands start without loading it

    page = folder / "report.html"
    files = {"report": page if page.exists() else folder / "report.md"}  # a full disk has no page
    files |= {name: Path(path) for name, path in {"figures": folder / "figures", **paths}.items()}
    verdict = judge(report.accuracy)
    if verbosity().json:
        print_result("", _figures(report, verdict), {"output": folder, **files})
        return
    text = "" if verbosity().quiet else _summarise(report, verdict, len(files))
    print_result(text, {}, {key: _short(path) for key, path in files.items()}, report.warnings)
    if not verbosity().quiet:
        print("\n".join(_next_steps(report, folder, images)))


def _figures(report: "Report", verdict: "Verdict") -> dict[str, Any]:
    """Return what a program wants to know of a run."""
    return {
        "name": report.name,
        "as_good_as_ensemble": is_as_good(verdict),
        "verdict": verdict._asdict(),
        "warnings": list(report.warnings),
        "accuracy": report.accuracy.model_dump(mode="json"),
        "size": report.size.model_dump(mode="json"),
        "mlflow": report.mlflow.model_dump(mode="json"),
    }


def is_as_good(verdict: "Verdict") -> bool | None:
    """Return whether the student is as good as the ensemble of its teachers; None if that is not known."""
    return {"better": True, "equal": True, "worse": False, "bad": False}.get(verdict.grade)


def _summarise(report: "Report", verdict: "Verdict", num_files: int) -> str:
    """Return the summary without the paths and commands below it."""
    width = min(max(shutil.get_terminal_size().columns, MIN_WIDTH), MAX_WIDTH)
    answer = {True: "yes", False: "no", None: "not known"}[is_as_good(verdict)]
    answer += ", within chance" if verdict.grade == "equal" else ""
    points = f" ({verdict.number} points)" if verdict.unit.startswith("percentage points") else ""
    lines = [f"as good as the ensemble of its teachers: {answer}{points}"]
    lines += wrap(f"verdict: {escape_control(verdict.sentence)}", width, subsequent_indent=" " * 9)
    for warning in report.warnings[:MAX_WARNINGS]:
        shown = f"warning: {escape_control(warning)}"
        lines += wrap(shown, width, subsequent_indent=" " * 9, max_lines=2, placeholder=" ...")
    if len(report.warnings) > MAX_WARNINGS:
        lines.append(f"         and {len(report.warnings) - MAX_WARNINGS} more warnings, see the report")
    if report.start is not None:
        lines.append(f"start:   {escape_control(report.start.source)}"[:width])
    if report.gate is not None:
        lines.append(f"gate:    {report.gate.used}"[:width])
    rest = MAX_LINES - len(lines) - num_files - 2  # below are the paths and two commands
    return "\n".join([*lines, *_table(report, rest)])


def _short(path: Path | str) -> str:
    """Return a path as a user would type it: relative if it is below the current folder."""
    text, here = escape_control(str(path)), f"{Path.cwd()}{os.sep}"
    return text.removeprefix(here)


def _next_steps(report: "Report", folder: Path, images: Sequence[str | Path]) -> Iterator[str]:
    uri = report.mlflow.tracking_uri
    if uri is not None and uri.startswith(("http://", "https://")):
        yield f"browse:  {uri}"
    elif (folder / "mlflow.db").exists():  # a database, which a browser shows only through a local server
        yield f"browse:  {find_program('ka-ray')} browse {shlex.quote(_short(folder))}"
    elif uri is not None:
        yield f"browse:  {find_program('mlflow')} server --backend-store-uri {shlex.quote(uri)}"
    words = ["predict", _short(folder), *map(_short, images[:1])]
    yield f"try:     {find_program('ka-ray')} {shlex.join(words)}"


def _table(report: "Report", max_lines: int) -> list[str]:
    """Return the accuracies and sizes of the teachers and of the student, in aligned columns.

    Args:
        report: The report.
        max_lines: How many lines there may be; with more teachers, only some are shown.
    """
    rows = [("", "teachers", "student"), *_list_accuracies(report.accuracy, max_lines - 5)]
    for key in ("parameters", "macs", "bytes"):
        sizes = (report.size.teachers, report.size.student)
        teachers, student = (f"{getattr(size, key):,}" for size in sizes)
        rows.append((key, teachers, student))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    title = f"{report.name}: {len(report.classes)} classes, {_describe_images(report.accuracy)}"
    return [
        escape_control(title),
        *(f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}".rstrip() for row in rows),
    ]


def _describe_images(accuracy: "Accuracy") -> str:
    """Return the number of images; with that of the others, if labels of some are no classes."""
    images = f"{accuracy.images:,} images"
    if accuracy.union is None:
        images += " without labels, so only the agreement was measured"
    return f"accuracies on {accuracy.labelled:,} of {images}" if accuracy.unmatched else images


def _list_accuracies(accuracy: "Accuracy", max_rows: int) -> Iterator[tuple[str, str, str]]:
    """Yield rows: what is measured, the value of the teachers, and that of the student."""
    union = format_percent(accuracy.union)
    yield "all classes (teachers: ensemble)", format_percent(accuracy.ensemble), union
    if accuracy.gate is not None:
        yield "all classes (ensemble with the gate)", format_percent(accuracy.gate.ensemble), union
    own = list(accuracy.per_teacher.items())
    room = max_rows - (2 if accuracy.gate is None else 3)  # those above, and the agreement below
    shown = own if len(own) <= room else own[: max(room - 1, 0)]
    for name, pair in shown:
        name = escape_control(name)[:40]
        yield f"classes of {name}", format_percent(pair.teacher), format_percent(pair.student)
    if len(shown) < len(own):
        yield f"{len(own) - len(shown)} more teachers are in the report", "", ""
    yield "student and ensemble agree", "", format_percent(accuracy.agreement)


def show_accuracy(accuracy: "Accuracy") -> None:
    """Print the accuracies of a student, after a warning if they are not those of all labelled images.

    Args:
        accuracy: The accuracies of the student on labelled images.
    """
    from ka_ray.reports.warnings import warn_of_labels  # here, as above: loading it takes time

    warnings = list(warn_of_labels(accuracy))
    others = f", of {accuracy.images} images" if accuracy.labelled < accuracy.images else ""
    lines = [f"warning: {escape_control(warning)}" for warning in warnings]
    lines.append(f"union {format_percent(accuracy.union)} on {accuracy.labelled} labelled images{others}")
    for name, pair in accuracy.per_teacher.items():
        lines.append(f"classes of {name}: {format_percent(pair.student)}")
    print_result("\n".join(lines), {"accuracy": accuracy.model_dump(mode="json")}, {}, warnings)
