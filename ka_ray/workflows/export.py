"""`ka-ray export`: write a finished student in the format of another program, and check what was written."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ka_ray.errors import InputError
from ka_ray.formats.compare import Deviation, measure_deviation, measure_latency
from ka_ray.formats.job import CARD, ExportFormat, ExportJob
from ka_ray.formats.registry import find_format
from ka_ray.runs.output_folder import load_finished_student
from ka_ray.runs.sample_images import SampleImages, read_sample_images
from ka_ray.storage.atomic_folder import atomic_folder
from ka_ray.storage.files import format_bytes, is_remote, write_json
from ka_ray.storage.uris import to_path

MAX_DIFFERENCE = 1e-4
"""Largest difference of a float export's scores from the student's, relative to the largest score."""

MIN_AGREEMENT = 0.98
"""Share of images for which an int8 export must predict the student's class, unless the user says another."""

SAMPLES = 256
"""Number of images with which an export is checked; with int8, half of them measure ranges."""

MIN_CALIBRATION_IMAGES = 8
"""Fewer images say too little of the ranges of values."""

WEIGHTS = "student.safetensors"
"""The file with the student's weights in its folder."""

EXPORTS = "export"
"""The folder in a run's output folder in which exports are written by default."""


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how it compares with the student.

    Attributes:
        folder: The folder with the files.
        format: Name of the format.
        quantize: ``int8``, or None.
        input: ``pixels`` or ``normalised images``: what the export takes.
        files: Name of each file -> bytes.
        student_bytes: Size of the student's weights in bytes.
        images: What the scores were compared on.
        deviation: How far they are from the student's.
        student_ms: Median milliseconds of the student for one image, with the export's input.
        export_ms: The same of the export.
        threads: Number of threads of both.
    """

    folder: Path
    format: str
    quantize: str | None
    input: str
    files: dict[str, int]
    student_bytes: int
    images: str
    deviation: Deviation
    student_ms: float
    export_ms: float
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        return asdict(self) | {"folder": str(self.folder)}

    def to_text(self) -> str:
        """Return everything in lines for the user."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        kind = f"{self.format}, int8" if self.quantize else self.format
        files = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.files.items())
        return "\n".join(
            [
                f"format:  {kind}; takes {self.input}",
                f"checked: {self.deviation.images} images: {self.images}",
                f"scores:  {_describe(self.deviation)}",
                f"latency: {self.export_ms:.3g} ms per image, the student {self.student_ms:.3g} ms (median, "
                f"one image at a time, {threads})",
                f"files:   {files}; the student's weights {format_bytes(self.student_bytes)}",
                f"folder:  {self.folder}",
            ]
        )


def _describe(deviation: Deviation) -> str:
    return (
        f"largest difference {deviation.max_difference:.2g} of the largest score; the same class for "
        f"{deviation.agreement:.2%} of the images"
    )


def export(
    folder: str | Path,
    format: str,
    output: str | Path | None = None,
    *,
    preprocessing: bool = False,
    quantize: str | None = None,
    images: str | None = None,
    samples: int = SAMPLES,
    min_agreement: float | None = None,
    trust: bool = False,
) -> ExportResult:
    """Write a student in another format, load what was written, and compare it with the student.

    Args:
        folder: The output folder of a run.
        format: A key of :data:`ka_ray.formats.registry.FORMATS`.
        output: The local folder to write, replaced if it holds an export; None: ``export/FORMAT`` in the
            output folder.
        preprocessing: Whether the export normalises pixels itself.
        quantize: ``int8``, or None.
        images: Path of the images to check with; None: those of the run, or else random pixels.
        samples: Largest number of them.
        min_agreement: Share of images for which an int8 export must predict the student's class; None: .98.
        trust: See :func:`ka_ray.student.load_student`.

    Raises:
        InputError: The format cannot hold the student, a package is missing, or scores or classes differ too
            much; nothing is left on disk.
    """
    _check_quantize(quantize, min_agreement)
    chosen = find_format(format, preprocessing, quantize is not None)
    source, student = to_path(folder), load_finished_student(folder, trust=trust)
    target = to_path(output) if output is not None else _find_output(source, format, quantize)
    with atomic_folder(target, CARD) as part:
        sample = read_sample_images(source, student.spec, images, samples)
        calibration, checked = _divide(sample) if quantize else (None, sample.pixels)
        job = ExportJob(student, preprocessing, calibration)
        result = _write(job, chosen, part, checked, sample.source, min_agreement)
        return replace(result, folder=target, student_bytes=(source / WEIGHTS).stat().st_size)


def _check_quantize(quantize: str | None, min_agreement: float | None) -> None:
    if quantize not in (None, "int8"):
        raise InputError(f"--quantize {quantize!r}: there is int8")
    if min_agreement is not None and quantize is None:
        raise InputError("--min-agreement: is for --quantize int8; other exports must agree on every image")


def _find_output(source: Path, format: str, quantize: str | None) -> Path:
    if is_remote(source):
        raise InputError(f"--output: give a local folder, because {source} is not one")
    return source / EXPORTS / (f"{format}-{quantize}" if quantize else format)


def _divide(sample: SampleImages) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images that ranges are measured on, and those that the export is checked with."""
    calibration, checked = sample.pixels[0::2], sample.pixels[1::2]
    if sample.are_random or min(len(calibration), len(checked)) < MIN_CALIBRATION_IMAGES:
        found = sample.source if sample.are_random else f"{len(sample.pixels)} {sample.source}"
        raise InputError(
            f"--quantize int8: needs at least {2 * MIN_CALIBRATION_IMAGES} images, to measure the ranges of "
            f"values, and there are only {found}"
        )
    return calibration, checked


def _write(
    job: ExportJob,
    chosen: ExportFormat,
    part: Path,
    checked: torch.Tensor,
    images: str,
    min_agreement: float | None,
) -> ExportResult:
    """Write the files, load them, and refuse them if they are not the student."""
    int8 = job.calibration is not None
    chosen.write(job, part)
    predict = chosen.load(job, part)
    deviation = measure_deviation(job, predict, checked)
    least = (MIN_AGREEMENT if min_agreement is None else min_agreement) if int8 else 1.0
    if deviation.agreement < least or (not int8 and deviation.max_difference > MAX_DIFFERENCE):
        allowed = f"at least {least:.2%}" if int8 else f"at most {MAX_DIFFERENCE:.0e}, and all images"
        raise InputError(
            f"--format {chosen.name}: the export differs too much from the student: {_describe(deviation)} "
            f"(allowed: {allowed}), on {len(checked)} images: {images}. Nothing was written"
        )
    student_ms, export_ms = measure_latency(job, predict, checked)
    result = ExportResult(
        folder=part,
        format=chosen.name,
        quantize="int8" if int8 else None,
        input="pixels" if job.preprocessing else "normalised images",
        files={path.name: path.stat().st_size for path in sorted(part.iterdir())},
        student_bytes=0,
        images=images,
        deviation=deviation,
        student_ms=student_ms,
        export_ms=export_ms,
        threads=torch.get_num_threads(),
    )
    write_json(part / CARD, job.card | _describe_check(result))
    return result


def _describe_check(result: ExportResult) -> dict[str, Any]:
    """Return the part of the card about the export itself; it names no paths of this machine."""
    return {
        "format": result.format,
        "quantize": result.quantize,
        "check": asdict(result.deviation),
        "latency_ms": {"export": result.export_ms, "student": result.student_ms, "threads": result.threads},
    }
