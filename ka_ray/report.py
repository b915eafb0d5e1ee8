"""The report of a run: what ``report.json`` holds, and the same for people as ``report.md``."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from ka_ray.features.store import write_json
from ka_ray.files import read_text, write_text
from ka_ray.markdown import write_markdown
from ka_ray.uris import to_path

StageName = Literal["teach", "extract", "codes", "layers", "joint", "evaluate"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Part):
    """Accuracies on the images of one teacher's classes, among those classes: its own, the student's."""

    teacher: float | None
    student: float | None


class Accuracy(_Part):
    """How the student was judged; what needs labels, or teachers, is None without them.

    ``union`` is the student's accuracy over all classes, ``ensemble`` that of the amalgamated scores (of one
    view; ``ensemble_over_views`` of those averaged over views, if there are views), ``agreement`` the share
    of images on which student and ensemble say the same.
    """

    union: float | None
    ensemble: float | None
    ensemble_over_views: float | None
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


class Extension(_Part):
    """What a run took over from the one that it extends.

    ``reused`` and ``trained`` auto-encoders of each tap; ``saved_seconds`` is what the extended run's codes
    took, 0 where all were trained again.
    """

    extended: str
    reused: int
    trained: int
    seconds: float
    saved_seconds: float


class Layer(_Part):
    """One student layer: the share of its target's variance that it misses.

    Of a layer computed by least squares it is that on held-out images, by which ``ridge`` was chosen.
    """

    relative_error: float
    ridge: float | None


class Speed(_Part):
    """How long a stage took, and how many images it went through in a second."""

    seconds: float
    images_per_s: float


class CurvePoint(_Part):
    """The student after some images of joint learning."""

    images: int
    accuracy: Accuracy


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
    """All that came out of a run.

    ``overlap`` names the classes that several teachers know, with these teachers; ``kept_adapters`` the
    parameters of adapters that could not be folded, tap by tap.
    """

    name: str
    classes: list[str]
    method: Literal["direct", "incremental", "common_features", "distill", "scratch"]
    rule: Literal["concatenate", "mean", "max", "conditional"]
    centered: bool
    overlap: dict[str, list[str]]
    accuracy: Accuracy
    curve: list[CurvePoint]
    size: Sizes
    kept_adapters: dict[str, int]
    codes: dict[str, Code]
    extension: Extension | None
    layers: dict[str, Layer]
    stages: dict[StageName, Speed]
    ray: Cluster
    placements: list[Placement]
    unreadable: list[str]
    mlflow: MlflowRun

    def save(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md`` into a folder, each whole or not at all."""
        write_text(folder / "report.md", self.to_markdown())
        write_json(folder / "report.json", self.model_dump(mode="json"))

    @staticmethod
    def load(folder: str | Path) -> "Report":
        """Read the report of a finished run from its output folder."""
        return Report.model_validate(json.loads(read_text(to_path(folder) / "report.json")))

    def to_markdown(self) -> str:
        """Write the report for people."""
        return write_markdown(self)


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
