"""Print the results of a finished run, and the properties of this machine, on the command line."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ka_ray.errors import CONTROL_CHARACTERS

if TYPE_CHECKING:
    from rich.table import Table

    from ka_ray.reports.report import Report
    from ka_ray.reports.sections import Accuracy


def format_percent(share: float | None) -> str:
    """Format a share as a percentage; None, i.e. not measured, becomes a dash.

    Example:
        >>> format_percent(0.9375), format_percent(None)
        ('93.8 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def escape_control(text: str) -> str:
    r"""Return a text on one line whose control characters are visible: names of files may hold some.

    Example:
        >>> print(escape_control("two\nlines"), escape_control("\x1b[2J"))
        two\nlines \x1b[2J
    """
    return text.translate(CONTROL_CHARACTERS | {ord("\n"): r"\n", ord("\t"): r"\t"})


def find_program(name: str) -> str:
    """Return what to type to call an installed program: its name, or its path if PATH does not have it."""
    # Programs of a virtual environment that is not activated are beside its Python.
    installed = Path(sys.executable).parent / name
    return name if shutil.which(name) or not installed.exists() else os.path.relpath(installed)


def show_next_run(config: Path) -> None:
    """Print the command that runs a config which a search has written."""
    print(f"next:    {find_program('ka-ray')} run {shlex.quote(str(config))}")


def show_report(report: "Report", folder: Path, images: Sequence[str | Path] = ("IMAGE...",)) -> None:
    """Print the results of a run, and what to do with them.

    Args:
        report: The run's report.
        folder: The run's output folder.
        images: Image files for the suggested ``ka-ray predict`` command.
    """
    from rich.console import Console  # here, so that other commands start without loading rich
    from rich.text import Text

    from ka_ray.reports.verdict import judge

    # Names of classes, teachers and folders may hold square brackets, which rich would take for its markup.
    console, accuracy = Console(soft_wrap=True, markup=False, emoji=False), report.accuracy
    console.print(f"verdict: {judge(accuracy).sentence}")
    for warning in report.warnings:
        console.print(Text("warning:", "bold red"), escape_control(warning))
    if report.start is not None:
        console.print(f"start:   {escape_control(report.start.source)}")
    if report.gate is not None:
        console.print(f"gate:    {report.gate.used}")
    console.print(_build_table(report))
    if accuracy.union is None:
        console.print("The images have no labels, so only the agreement could be measured.")
    if (folder / "report.html").exists():  # not if the disk was full
        console.print(f"report:  {folder / 'report.html'}")
    console.print(f"report:  {folder / 'report.md'}")
    console.print(*(f"figure:  {f}\n" for f in sorted((folder / "figures").glob("*.png"))), sep="", end="")
    uri = report.mlflow.tracking_uri
    if uri is not None and uri.startswith(("http://", "https://")):
        console.print(f"browse:  {uri}")
    elif (folder / "mlflow.db").exists():  # a database, which a browser shows only through a local server
        console.print(f"browse:  {find_program('ka-ray')} browse {shlex.quote(str(folder))}")
    elif uri is not None:
        console.print(f"browse:  {find_program('mlflow')} server --backend-store-uri {shlex.quote(uri)}")
    console.print(f"try:     {find_program('ka-ray')} {shlex.join(map(str, ['predict', folder, *images]))}")


def _build_table(report: "Report") -> "Table":
    """Return the accuracies and sizes of the teachers and of the student."""
    from rich.table import Table

    table = Table(title=f"{report.name}: {len(report.classes)} classes, {_describe_images(report.accuracy)}")
    for column in ("", "teachers", "student"):
        table.add_column(column, justify="left" if not column else "right")
    for row in _list_accuracies(report.accuracy):
        table.add_row(*row)
    for key in ("parameters", "macs", "bytes"):
        table.add_row(
            key, *(f"{getattr(size, key):,}" for size in (report.size.teachers, report.size.student))
        )
    return table


def _describe_images(accuracy: "Accuracy") -> str:
    """Return the number of images; with that of the others, if labels of some are no classes."""
    images = f"{accuracy.images:,} images"
    return f"accuracies on {accuracy.labelled:,} of {images}" if accuracy.unmatched else images


def show_accuracy(accuracy: "Accuracy") -> None:
    """Print the accuracies of a student, after a warning if they are not those of all labelled images.

    Args:
        accuracy: The accuracies of the student on labelled images.
    """
    from ka_ray.reports.warnings import warn_of_labels  # here, as above: loading it takes time

    for warning in warn_of_labels(accuracy):
        print(f"warning: {escape_control(warning)}")
    others = f", of {accuracy.images} images" if accuracy.labelled < accuracy.images else ""
    print(f"union {format_percent(accuracy.union)} on {accuracy.labelled} labelled images{others}")
    for name, pair in accuracy.per_teacher.items():
        print(f"classes of {name}: {format_percent(pair.student)}")


def show_teacher(name: str, accuracy: float | None, images: int, left_out: int) -> None:
    """Print the accuracy of a teacher that was trained.

    Args:
        name: The name of the teacher.
        accuracy: Its accuracy, in [0, 1]; None if no image of its classes has a label.
        images: Number of images that it was measured on.
        left_out: Number of images that were left out because their labels are no classes of the teacher.
    """
    others = f"; left out are {left_out} images of other classes" if left_out else ""
    print(f"teacher {name}: accuracy {format_percent(accuracy)} on {images} images{others}")


def _list_accuracies(accuracy: "Accuracy") -> Iterator[tuple[str, str, str]]:
    """Yield rows: what is measured, the value of the teachers, and that of the student."""
    union = format_percent(accuracy.union)
    yield "all classes (teachers: ensemble)", format_percent(accuracy.ensemble), union
    if accuracy.gate is not None:
        yield "all classes (ensemble with the gate)", format_percent(accuracy.gate.ensemble), union
    for name, pair in accuracy.per_teacher.items():
        yield f"classes of {name}", format_percent(pair.teacher), format_percent(pair.student)
    yield "student and ensemble agree", "", format_percent(accuracy.agreement)


def show_machine() -> None:
    """Print what this machine has: versions of Python and libraries, CPUs, GPUs, free disk space."""
    import platform
    from importlib.metadata import version

    import torch

    libraries = " ".join(
        f"{name}={version(name)}" for name in ("ka_ray", "ray", "torch", "torchvision", "mlflow")
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"python={platform.python_version()} {libraries}")
    print(f"cpus={os.cpu_count()} gpus={gpus or 'none'}")
    print(f"disk_free_gib={shutil.disk_usage(Path.cwd()).free / 1024**3:.1f} ({Path.cwd()})")
    print(f"ray_address={os.environ.get('RAY_ADDRESS', 'none: Ray starts on this machine')}")
