"""The sections of a report, as typed models."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

StageName = Literal["teach", "extract", "codes", "layers", "joint", "evaluate"]


class ReportSection(BaseModel):
    """A part of a report: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(ReportSection):
    """Accuracies on the images of one teacher's classes, among those classes: its own, the student's."""

    teacher: float | None
    student: float | None


class Accuracy(ReportSection):
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


class Size(ReportSection):
    """What a network costs: its numbers, the multiply-accumulates of one image, the bytes of its weights."""

    parameters: int
    macs: int
    bytes: int


class Sizes(ReportSection):
    """The student beside all teachers together and each of them."""

    student: Size
    teachers: Size
    per_teacher: dict[str, Size]


class Code(ReportSection):
    """One tap's code: channels kept, of how many; the share of variance lost, and the least possible."""

    width: int
    stacked: int
    relative_error: float
    optimal_relative_error: float


class Extension(ReportSection):
    """What a run took over from the one that it extends.

    ``reused`` and ``trained`` auto-encoders of each tap; ``saved_seconds`` is what the extended run's codes
    took, 0 where all were trained again.
    """

    extended: str
    reused: int
    trained: int
    seconds: float
    saved_seconds: float


class Layer(ReportSection):
    """One student layer: the share of its target's variance that it misses.

    Of a layer computed by least squares it is that on held-out images, by which ``ridge`` was chosen.
    """

    relative_error: float
    ridge: float | None


class Speed(ReportSection):
    """How long a stage took, and how many images it went through in a second."""

    seconds: float
    images_per_s: float


class CurvePoint(ReportSection):
    """The student after some images of joint learning."""

    images: int
    accuracy: Accuracy


class Cluster(ReportSection):
    """What Ray had."""

    nodes: int
    cpus: float
    gpus: float


class Placement(ReportSection):
    """Where a teacher actor ran."""

    teacher: str
    node: str
    gpus: list[int]
    device: str
    pid: int


class MlflowRun(ReportSection):
    """Where the run is tracked; None if nowhere."""

    tracking_uri: str | None
    run_id: str | None


class ReportContent(ReportSection):
    """All that came out of a run, as ``report.json`` holds it.

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
