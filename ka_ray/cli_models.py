"""The commands of `ka-ray` that take models and images instead of a config.

As in :mod:`ka_ray.cli`, each command imports what it needs itself.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ka_ray.terminal import summary
from ka_ray.terminal.results import escape_control, print_result

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a config key: joint.epochs=5."),
]
Teachers = Annotated[
    list[str],
    typer.Argument(
        metavar="TEACHER...",
        help="File, folder or name of a model, or NAME=SOURCE; docs/teachers.md lists the kinds.",
    ),
]
TrainingImages = Annotated[
    str,
    typer.Option("--images", help="Folder of images to learn from; or a list, Parquet, tar, save_to_disk."),
]
Hints = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FOLDER", help="Images of the classes of a teacher, or of `nobody`."),
]
EvaluationImages = Annotated[
    str | None,
    typer.Option("--evaluate", help="Folder of images to evaluate on; by default a tenth of --images."),
]
MergeOutput = Annotated[
    str | None, typer.Option(help="Output folder or URI; by default runs/ and the names of the teachers.")
]


def inspect(
    model: Annotated[str, typer.Argument(help="File, folder or name of a model, as a teacher in one line.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of a teacher: network=resnet18."),
    ] = None,
) -> None:
    """Show what a model is: network, classes, preprocessing, taps and embedding."""
    from ka_ray.workflows.inspect import inspect_model

    description = inspect_model(model, overrides or [])
    text = "\n".join(map(escape_control, description.to_text().split("\n")))
    print_result(text, description.to_json(), {})


def init(
    teachers: Teachers,
    images: TrainingImages,
    hints: Hints = None,
    evaluate: EvaluationImages = None,
    output: MergeOutput = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file to write; by default it has the name of the run.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    overrides: Overrides = None,
) -> None:
    """Write a commented config for teachers and images, without running anything."""
    from ka_ray.workflows.merge_config import MergeRequest, build_config, parse_hints

    request = MergeRequest(teachers, images, output, parse_hints(hints or []), evaluate, overrides or [])
    build_config(request)  # refuses wrong paths before torch and Ray are loaded
    from ka_ray.workflows import merge as workflow

    path = workflow.init(request, config, force)
    print_result("", {}, {"config": path, "next": summary.next_command(path)})


def merge(
    teachers: Teachers,
    images: TrainingImages,
    hints: Hints = None,
    evaluate: EvaluationImages = None,
    output: MergeOutput = None,
    overrides: Overrides = None,
) -> None:
    """Merge teachers into one student, without a config: what they are is found out."""
    from ka_ray.workflows.merge_config import MergeRequest, build_config, parse_hints

    request = MergeRequest(teachers, images, output, parse_hints(hints or []), evaluate, overrides or [])
    build_config(request)  # refuses wrong paths before torch and Ray are loaded
    from ka_ray.runs.output_folder import MERGE_CONFIG
    from ka_ray.workflows import merge as workflow

    report, folder = workflow.merge_by_request(request)
    summary.show_report(report, folder, config=folder / MERGE_CONFIG)


def browse(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run; it may have been moved.")],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free one from 5000.")
    ] = None,
) -> None:
    """Show a run in MLflow: start its server for this machine, and print the address of the run's page."""
    from ka_ray.terminal.streams import print_progress
    from ka_ray.workflows.browse import browse as serve_runs

    def show(page: str) -> None:
        print_result("", {}, {"browse": page})
        sys.stdout.flush()  # the command goes on, and a program may wait for the address

    serve_runs(folder, port, show, print_progress)
