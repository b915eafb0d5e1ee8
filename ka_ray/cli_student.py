"""The commands of `ka-ray` that use a finished student.

As in :mod:`ka_ray.cli`, each command imports what it needs itself.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ka_ray.errors import InputError
from ka_ray.terminal import summary
from ka_ray.terminal.results import escape_control, print_result
from ka_ray.verbosity import verbosity

RunFolder = Annotated[str, typer.Argument(help="Output folder or URI of a finished run.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the function that the folder names, not its exported graph.")
]

STDIN = "-"
"""Stands for the paths on standard input."""


def evaluate(
    folder: RunFolder,
    images: Annotated[
        str, typer.Option(help="Folder with a folder per class, CSV, Parquet, tar, save_to_disk, `digits`.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a key of the image source, e.g. label_column=label."
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Evaluate a finished student on labelled images. Only the run's folder is needed, not the teachers."""
    from ka_ray import evaluate as evaluate_folder
    from ka_ray.runs.student_images import build_images_config

    config = build_images_config(folder, images, overrides or [], trust=trust)
    summary.show_accuracy(evaluate_folder(folder, config, trust=trust))


def predict(
    folder: RunFolder,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, folders, patterns; - for paths on standard input, one a line.",
        ),
    ],
    top: Annotated[
        int, typer.Option(min=1, help="Number of classes per image, the most probable first.")
    ] = 1,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images per forward pass.")] = 32,
    trust: Trust = False,
) -> None:
    """Predict the classes of images, with their probabilities; with --json, an object per image and line."""
    from ka_ray import stream_predictions
    from ka_ray.runs.image_paths import names_one_file
    from ka_ray.terminal.counter import Counter
    from ka_ray.terminal.predictions import make_writer

    as_json = verbosity().json  # an object per image and line, as there can be many
    if as_csv and as_json:
        raise InputError("give either --csv or --json")
    unreadable = _UnreadableImages()
    # The error about one file is the whole answer; among many, the others are still predicted.
    note = None if STDIN not in images and names_one_file(images) else unreadable
    predictions = stream_predictions(
        folder, _read_paths(images), top=top, batch_size=batch_size, trust=trust, on_unreadable=note
    )
    write = make_writer("json" if as_json else "csv" if as_csv else "text", top)
    with Counter("images") as counter:
        for one in predictions:
            write(one)
            counter.advance()
    unreadable.raise_if_any(counter.count)


class _UnreadableImages:
    """Names images that cannot be read on standard error, and counts them."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, path: str, reason: str) -> None:
        self._count += 1
        typer.echo(escape_control(f"unreadable: {path}: {reason}"), err=True)

    def raise_if_any(self, readable: int) -> None:
        """Raise an InputError if there was any, beside a number of readable images."""
        if self._count:
            total = self._count + readable
            raise InputError(f"{self._count:,} of {total:,} images cannot be read; they are named above")


def _read_paths(images: list[str]) -> Iterator[str | Path]:
    """Yield the paths of the command line; instead of `-`, those on standard input, which are no patterns."""
    from ka_ray.storage.uris import to_path

    for one in images:
        if one != STDIN:
            yield one
            continue
        for line in sys.stdin.buffer:
            if name := os.fsdecode(line.rstrip(b"\r\n")):
                yield to_path(name)


def export(
    folder: RunFolder,
    format: Annotated[
        str, typer.Option(help="onnx, pt2, torchscript, safetensors, timm, huggingface or openvino.")
    ],
    output: Annotated[
        str | None, typer.Option(help="Folder to write; by default export/FORMAT in the run's folder.")
    ] = None,
    preprocessing: Annotated[
        bool, typer.Option("--preprocessing", help="Take pixels, uint8, and normalise them inside.")
    ] = False,
    quantize: Annotated[str | None, typer.Option(help="int8, with --format onnx.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Images to check with, as in `evaluate`; by default those of the run.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Largest number of these images.")] = 256,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="With --quantize: least share of images with the student's class; default .98."
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write a student in the format of other programs, and check that it is the same student."""
    from ka_ray import export as export_student

    # fmt: off
    result = export_student(
        folder, format, output, preprocessing=preprocessing, quantize=quantize, images=images,
        samples=samples, min_agreement=min_agreement, trust=trust,
    )
    # fmt: on
    text = "\n".join(map(escape_control, result.to_text().split("\n")))
    print_result(text, result.to_json(), {})
