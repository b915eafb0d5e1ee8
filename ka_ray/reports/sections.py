"""The typed sections of ``report.json``."""

from typing import Literal

from pydantic import Field

from ka_ray.reports.choices import ReportSection, StartCandidate, StudentChoice
from ka_ray.reports.disputed import DisputedImage
from ka_ray.reports.gates import GateAccuracy, GateChoice
from ka_ray.reports.networks import NetworkSizes
from ka_ray.reports.origin import RunOrigin
from ka_ray.reports.timeline import TimelineStep

StageName = Literal["teach", "extract", "start", "codes", "layers", "joint", "evaluate"]
"""The stages of a run, in the order in which they run."""


class AccuracyPair(ReportSection):
    """Accuracies of one teacher and of the student on the images of this teacher's classes.

    Only the scores of the teacher's classes are compared, so neither can answer with another class.
    """

    teacher: float | None
    """Accuracy of the teacher, in [0, 1]; None if no image of its classes has a label."""
    student: float | None
    """Accuracy of the student on the same images, in [0, 1]; None if none of them has a label."""


class Accuracy(ReportSection):
    """Accuracies and agreement of a student, all in [0, 1]."""

    union: float | None
    """Accuracy of the student over the classes of all teachers; None without labels."""
    ensemble: float | None
    """Accuracy of the amalgamated scores of all teachers; None without labels or teachers."""
    ensemble_over_views: float | None
    """Same as ``ensemble``, with scores averaged over several views per image; None without such views."""
    gate: GateAccuracy | None = None
    """What the gate is worth on these images; None without a gate."""
    agreement: float | None
    """Share of the images for which student and ensemble, with the gate if there is one, predict the same
    class; None without teachers."""
    constant_agreement: float | None
    """Share of the images for which the ensemble predicts its most frequent class: the agreement of a student
    that always gives this answer; None without teachers."""
    per_teacher: dict[str, AccuracyPair]
    """Name of a teacher -> the accuracies on the images of its classes."""
    images: int
    """Number of images that were evaluated, with and without labels."""
    labelled: int
    """Number of these images whose label is a class: those that the accuracies are measured on."""
    unmatched: dict[str, int] = Field({})
    """Label that is no class -> number of images with it, which the accuracies leave out."""
    missing: list[str] = Field([])
    """Classes of which no image was evaluated, although images have labels."""


class CodeQuality(ReportSection):
    """How much of the stacked features of one tap its code keeps."""

    width: int
    """Number of channels of the code."""
    stacked: int
    """Number of stacked channels, which is the sum over the teachers."""
    relative_error: float
    """Share of the variance of the stacked features that is lost, in [0, 1]."""
    optimal_relative_error: float
    """Lowest share that any linear code of this width can lose, in [0, 1]."""


class Extension(ReportSection):
    """What a run reused from the earlier run that it extends."""

    extended: str
    """Output folder of the earlier run."""
    reused: int
    """Number of auto-encoders per tap that were taken from the earlier run."""
    trained: int
    """Number of auto-encoders per tap that were trained in this run."""
    seconds: float
    """Time that training them took, in seconds."""
    saved_seconds: float
    """Time that the earlier run spent on the reused auto-encoders, in seconds; 0 if none was reused."""


class LayerQuality(ReportSection):
    """How well one layer of the student reproduces its target, the code of its tap."""

    relative_error: float
    """Share of the target's variance that the layer does not reproduce.

    For least squares it is measured on the held-out images on which ``ridge`` was chosen.
    """
    ridge: float | None
    """Ridge of the least-squares solution; None if the layer was trained by gradient steps."""
    error_before: float | None
    """``relative_error`` of the start's layer; None if the layer began with random weights.

    Behind a start, both errors are measured on held-out images.
    """
    put_back: bool
    """Whether the layer ended worse than it began, so that the start's layer was put back."""


class StageSpeed(ReportSection):
    """Time and throughput of a stage."""

    seconds: float
    """Duration of the stage, in seconds."""
    images_per_s: float
    """Images processed per second; an image counts again in every epoch."""
    work: dict[str, float] = Field({})
    """Kind of work, such as ``decode images`` -> seconds of it, added up over the processes that did it side
    by side; of a training stage, the seconds of its first worker. Empty where it was not measured."""


class CurvePoint(ReportSection):
    """The student after one of the epochs of joint learning."""

    images: int
    """Number of images processed in joint learning so far; an image counts again in every epoch."""
    accuracy: Accuracy
    """Accuracies of the student at this point."""


class StartQuality(ReportSection):
    """The student as it started from given weights, before any step."""

    source: str
    """Where the weights came from, such as ``average``, ``teacher NAME`` or ``checkpoint FILE``."""
    random: list[str]
    """Names of the weights that were not found there and were random."""
    candidates: list[StartCandidate]
    """The starts that were built and judged; the one with the smallest ``worst_divergence`` was chosen."""
    skipped: dict[str, str]
    """Name of a start that does not apply to these networks -> why."""
    accuracy: Accuracy
    """Accuracies of the student before any step."""


class ClusterResources(ReportSection):
    """The resources of the Ray cluster when the run started."""

    nodes: int
    """Number of nodes that were alive."""
    cpus: float
    """Number of logical CPUs of all nodes."""
    gpus: float
    """Number of logical GPUs of all nodes."""


class ActorPlacement(ReportSection):
    """Where the Ray actor of a teacher ran."""

    teacher: str
    """Name of the teacher."""
    node: str
    """Ray's id of the node."""
    gpus: list[int]
    """Ids of the GPUs that Ray assigned to the actor."""
    device: str
    """The torch device of the teacher's network."""
    pid: int
    """Process id of the actor on its node."""


class MlflowRun(ReportSection):
    """The MLflow run that keeps parameters, metrics and artifacts."""

    tracking_uri: str | None
    """Address of the MLflow server or database; None if the run is not tracked."""
    run_id: str | None
    """Id of the MLflow run; None if the run is not tracked."""


class ReportContent(ReportSection):
    """Everything that ``report.json`` holds."""

    name: str
    """Name of the run, from the config."""
    classes: list[str]
    """Classes of the student, in the order of its scores."""
    method: Literal["direct", "incremental", "common_features", "distill", "scratch", "start"]
    """How the student was made: the method of the codes, or the baseline, or ``start`` and joint learning."""
    rule: Literal["concatenate", "mean", "max", "conditional", "sum"]
    """How the scores of the teachers are combined; sum: with a gate, where several teachers know a class."""
    centered: bool
    """Whether the mean of each teacher's scores of an image is subtracted before they are combined."""
    overlap: dict[str, list[str]]
    """Class that several teachers know -> the names of these teachers."""
    accuracy: Accuracy
    """Accuracies of the finished student."""
    start: StartQuality | None
    """The student before any step; None if its weights were random."""
    gate: GateChoice | None = None
    """The gates that were learned, and which one was used; None without gates."""
    choice: StudentChoice | None
    """Which student was kept; None if it is always that of the last epoch."""
    warnings: list[str]
    """What went wrong without an error, and what to change."""
    curve: list[CurvePoint]
    """The student after every epoch of joint learning; empty unless ``evaluation.each_epoch`` is set."""
    disputed: list[DisputedImage] = Field([])
    """The images for which student and ensemble are surest of different classes; empty without teachers, and
    in reports of earlier versions."""
    size: NetworkSizes
    """Sizes of the student and of its teachers."""
    kept_adapters: dict[str, int]
    """Tap whose adapter could not be folded into the layer before it -> parameters of this adapter."""
    codes: dict[str, CodeQuality]
    """Tap -> its code; empty for a baseline."""
    extension: Extension | None
    """What was reused from an earlier run; None unless the run extends one."""
    layers: dict[str, LayerQuality]
    """Tap, or ``scores`` -> the student's layer that ends there; empty for a baseline."""
    stages: dict[StageName, StageSpeed]
    """Stage that ran -> its time and throughput."""
    timeline: list[TimelineStep] = Field([])
    """The steps of the command that wrote the report; a run that was resumed has only those of its last
    command. Empty in reports of earlier versions."""
    ray: ClusterResources
    """Resources of the Ray cluster."""
    placements: list[ActorPlacement]
    """Where the teachers' actors ran during extraction."""
    unreadable: list[str]
    """Images that could not be read and were skipped, each with the reason."""
    mlflow: MlflowRun
    """Where the run is tracked."""
    teacher_classes: dict[str, list[str]] = Field({})
    """Name of a teacher -> its classes; empty in reports of earlier versions."""
    origin: RunOrigin | None = None
    """What it takes to repeat the run; None in reports of earlier versions."""
