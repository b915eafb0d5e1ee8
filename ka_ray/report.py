"""The report of a run: what ``report.json`` holds, and the same for people as ``report.md``."""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from ka_ray.features.store import write_json

StageName = Literal["teach", "extract", "codes", "layers", "joint", "evaluate"]

NO_LABELS = (
    "The images have no labels, so agreement with the ensemble alone is reported: accuracy needs labels."
)
"""What the readable report says then."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Part):
    """Accuracies on the images of one teacher's classes, among those classes: its own, the student's."""

    teacher: float | None
    student: float | None


class Accuracy(_Part):
    """How the student was judged; what needs labels, or teachers, is None without them.

    ``union`` is the student's accuracy over all classes, ``ensemble`` that of the amalgamated scores,
    ``agreement`` the share of images on which both say the same.
    """

    union: float | None
    ensemble: float | None
    agreement: float | None
    per_teacher: dict[str, Pair]
    images: int
    labelled: int


class Size(_Part):
    """What a network costs: its numbers, the multiply-accumulates of one image, the bytes of its weights."""

    parameters: int
    macs: int
    bytes: int


class Sizes(_Part):
    """The student beside all teachers together and each of them."""

    student: Size
    teachers: Size
    per_teacher: dict[str, Size]


class Code(_Part):
    """One tap's code: channels kept, of how many; the share of variance lost, and the least possible."""

    width: int
    stacked: int
    relative_error: float
    optimal_relative_error: float


class Layer(_Part):
    """One student layer: the share of its target's variance that it misses."""

    relative_error: float


class Speed(_Part):
    """How long a stage took, and how many images it went through in a second."""

    seconds: float
    images_per_s: float


class Cluster(_Part):
    """What Ray had."""

    nodes: int
    cpus: float
    gpus: float


class Placement(_Part):
    """Where a teacher actor ran."""

    teacher: str
    node: str
    gpus: list[int]
    device: str
    pid: int


class MlflowRun(_Part):
    """Where the run is tracked; None if nowhere."""

    tracking_uri: str | None
    run_id: str | None


class Report(_Part):
    """All that came out of a run."""

    name: str
    classes: list[str]
    accuracy: Accuracy
    size: Sizes
    codes: dict[str, Code]
    layers: dict[str, Layer]
    stages: dict[StageName, Speed]
    ray: Cluster
    placements: list[Placement]
    unreadable: list[str]
    mlflow: MlflowRun

    def save(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md`` into a folder, each whole or not at all."""
        part = folder / ".report.md.part"
        part.write_text(self.to_markdown())
        part.replace(folder / "report.md")
        write_json(folder / "report.json", self.model_dump(mode="json"))

    @staticmethod
    def load(folder: Path) -> "Report":
        """Read the report of a finished run from its output folder."""
        return Report.model_validate(json.loads((folder / "report.json").read_text()))

    def to_markdown(self) -> str:
        """Write the report for people."""
        num_teachers = len(self.accuracy.per_teacher)
        title = f"# {self.name}: {len(self.classes)} classes, {num_teachers} teachers, one student"
        accuracy, sizes = _accuracy_section(self.accuracy), _size_section(self.size)
        codes, stages, places = _codes_section(self), _stages_section(self), _places_section(self)
        return "\n\n".join([title, accuracy, sizes, codes, stages, places]) + "\n"


REPORT_SCHEMA: dict[str, Any] = Report.model_json_schema()
"""The JSON schema of ``report.json``."""


def measure_size(network: torch.nn.Module, image: torch.Tensor) -> Size:
    """Count what a network costs.

    Args:
        network: In the mode in which it is used.
        image: Its input for one image, with the batch axis.

    Returns:
        Parameters; multiply-accumulates of the forward pass, in convs and matrix products; and bytes of
        parameters and buffers as they are stored in memory.

    Example:
        >>> measure_size(torch.nn.Linear(4, 2), torch.zeros(1, 4)).macs
        8
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    parameters = list(network.parameters())
    return Size(
        parameters=sum(p.numel() for p in parameters),
        macs=counter.get_total_flops() // 2,
        bytes=sum(tensor.nbytes for tensor in (*parameters, *network.buffers())),
    )


def _accuracy_section(accuracy: Accuracy) -> str:
    agreement = (
        f"Agreement of student and ensemble on {accuracy.images:,} images: {_share(accuracy.agreement)}."
    )
    if not accuracy.labelled:
        return f"## Accuracy\n\n{NO_LABELS}\n\n{agreement}"
    rows = [("all classes (teachers: their ensemble)", _share(accuracy.ensemble), _share(accuracy.union))]
    for name, pair in accuracy.per_teacher.items():
        rows.append((f"classes of {name}, among themselves", _share(pair.teacher), _share(pair.student)))
    table = _table(("on images of", "teachers", "student"), rows)
    labelled = f"Measured on the {accuracy.labelled:,} labelled ones of {accuracy.images:,} images."
    return f"## Accuracy\n\n{table}\n\n{labelled} {agreement}"


def _size_section(size: Sizes) -> str:
    networks = {"**student**": size.student, "all teachers": size.teachers, **size.per_teacher}
    rows = [
        (name, f"{one.parameters:,}", f"{one.macs / 1e6:,.2f}", f"{one.bytes / 1024**2:,.2f}")
        for name, one in networks.items()
    ]
    header = ("network", "parameters", "million multiply-accumulates an image", "MiB")
    return f"## Size\n\n{_table(header, rows)}"


def _codes_section(report: Report) -> str:
    cells = {tap: ["-"] * 4 for tap in (*report.codes, *report.layers)}
    for tap, code in report.codes.items():
        errors = f"{code.relative_error:.3g}", f"{code.optimal_relative_error:.3g}"
        cells[tap][:3] = f"{code.width} of {code.stacked}", *errors
    for tap, layer in report.layers.items():
        cells[tap][3] = f"{layer.relative_error:.3g}"
    rows = [(tap, *row) for tap, row in cells.items()]
    header = ("tap", "channels kept", "lost by the code", "least possible", "missed by the layer")
    note = "Errors are shares of the variance, of the stacked features (codes) and of the code (layers)."
    return f"## Codes and layers\n\n{_table(header, rows)}\n\n{note}"


def _stages_section(report: Report) -> str:
    order = StageName.__args__  # type: ignore[attr-defined]
    stages = sorted(report.stages.items(), key=lambda item: order.index(item[0]))
    rows = [(stage, f"{speed.seconds:,.1f}", f"{speed.images_per_s:,.0f}") for stage, speed in stages]
    ray = report.ray
    where = f"Ray had {ray.nodes} node(s), {ray.cpus:g} CPUs and {ray.gpus:g} GPUs."
    return f"## Stages\n\n{_table(('stage', 'seconds', 'images/s'), rows)}\n\n{where}"


def _places_section(report: Report) -> str:
    run, parts = report.mlflow, []
    if report.placements:
        rows = [
            (p.teacher, p.node, p.device, ", ".join(map(str, p.gpus)) or "-", str(p.pid))
            for p in report.placements
        ]
        parts.append(f"## Teacher actors\n\n{_table(('teacher', 'node', 'device', 'GPUs', 'process'), rows)}")
    if report.unreadable:
        names = "\n".join(f"- {name}" for name in report.unreadable)
        parts.append(f"## Skipped: {len(report.unreadable)} unreadable images\n\n{names}")
    if run.tracking_uri is None:
        parts.append("## Tracking\n\nNot tracked.")
    else:
        local = f"mlflow ui --backend-store-uri {shlex.quote(run.tracking_uri)}"
        browse = run.tracking_uri if run.tracking_uri.startswith("http") else local
        parts.append(f"## Tracking\n\nMLflow run `{run.run_id}`; to see it:\n\n```\n{browse}\n```")
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rule, *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
