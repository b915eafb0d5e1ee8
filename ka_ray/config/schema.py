"""The run description, section by section. `jobs/configs/folder.yaml` is its commented template."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ka_ray.config.base import AbsolutePath, Section
from ka_ray.config.load import load
from ka_ray.config.sources import ImagesConfig
from ka_ray.config.teachers import Augmentation, Preprocessing, TeacherConfig


class EvaluationConfig(Section):
    """Which images the student is judged on."""

    images: ImagesConfig | None = Field(None, description="null: a share of `images`, kept out of training")
    holdout: float = Field(0.1, gt=0, lt=1, description="That share; unused when `images` is given.")


class ExtractConfig(Section):
    """How the teachers turn images into stacked features."""

    images: int | None = Field(None, ge=1, description="Keep the features of this many images; null: all.")
    batch_size: int = Field(64, ge=1)
    actors_per_teacher: int = Field(1, ge=1)
    gpus_per_teacher: float = Field(0, ge=0, description="GPUs of each teacher actor.")
    cpus_per_teacher: float = Field(0.5, gt=0, description="CPUs of each teacher actor.")


class TrainingConfig(Section):
    """One stage of training: Adam with a one-cycle learning rate."""

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=1, description="Over all workers together.")
    learning_rate: float = Field(1e-3, gt=0, description="The peak of the one-cycle schedule.")


class LikeTeacher(Section):
    """Every code as wide as this teacher's features at the same tap."""

    like: str


Widths = Annotated[
    Annotated[LikeTeacher, Tag("like")] | Annotated[dict[str, int], Tag("taps")],
    Discriminator(
        lambda v: "like" if isinstance(v, LikeTeacher) or (isinstance(v, dict) and "like" in v) else "taps"
    ),
]
TapPath = Annotated[
    Annotated[str, Tag("path")] | Annotated[dict[str, str], Tag("paths")],
    Discriminator(lambda v: "paths" if isinstance(v, dict) else "path"),
]


class CodesConfig(TrainingConfig):
    """The auto-encoders: what is kept of the stacked features."""

    method: Literal["direct"] = Field(
        "direct", description="direct: one auto-encoder a tap over all teachers"
    )
    widths: Widths | None = Field(
        None, description="{like: TEACHER} or {TAP: channels, ...}; null: like the first teacher"
    )
    positions_per_image: int = Field(
        16, ge=1, description="Positions drawn at random from each map, an epoch."
    )
    epochs: int = Field(6, ge=1)
    batch_size: int = Field(64, ge=1, description="Images, over all workers together.")
    learning_rate: float = Field(2e-2, gt=0)


class LayersConfig(TrainingConfig):
    """Layer-wise learning: each student layer from the code before it to its own."""

    learning_rate: float = Field(5e-3, gt=0)


class JointConfig(TrainingConfig):
    """Joint learning: the folded student end to end towards the amalgamated scores."""

    loss: Literal["mse", "kl"] = "mse"
    temperature: float = Field(2.0, gt=0, description="Softens both sides of `kl`; unused by `mse`.")
    augment: Augmentation = Field(Augmentation(), description="Teachers score the same augmented view.")


class StudentConfig(Section):
    """The one network over all classes."""

    network: str | None = Field(None, description="A network family; null: the first teacher's")
    arguments: dict[str, Any] = Field(default_factory=dict)
    preprocessing: Preprocessing | None = Field(None, description="null: the first teacher's")


class RayConfig(Section):
    """Where it runs."""

    address: str | None = Field(None, description="null: RAY_ADDRESS if set, else a Ray on this machine")
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a Ray started here; null: all")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a Ray started here; null: all")
    workers: int = Field(2, ge=1, description="Ray Train workers.")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    timeout_s: int = Field(1800, ge=1, description="A collective stuck for this long fails the stage.")


class TrackingConfig(Section):
    """Where parameters, metrics, figures and the model are kept."""

    backend: Literal["mlflow", "none"] = "mlflow"
    uri: str | None = Field(None, description="MLflow tracking URI; null: sqlite in the output folder")
    experiment: str = "ka_ray"

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri is not None and re.search(r"://[^/@]*:[^/@]*@", uri):
            raise ValueError(
                "a password in the URI would end up in reports; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri


class _Run(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_\-]+$", description="Names the MLflow run and the output folder.")
    seed: int = 0
    output: AbsolutePath | None = Field(None, description="null: runs/NAME")
    images: ImagesConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    extract: ExtractConfig = ExtractConfig()
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply ``dotted.key=value`` overrides, check everything.

        Raises:
            InputError: naming every key that cannot work.
        """
        return load(cls, path, overrides)

    @property
    def output_dir(self) -> Path:
        """The absolute output folder."""
        return self.output or (Path("runs") / self.name).absolute()


class Config(_Run):
    """A whole run: images, teachers, student, and how each stage goes."""

    teachers: tuple[TeacherConfig, ...] = Field(description="At least two.")
    taps: dict[str, TapPath] | None = Field(
        None, description="tap: module path, or {teacher: module path}; null: every layer of the family"
    )
    student: StudentConfig = StudentConfig()
    codes: CodesConfig = CodesConfig()
    layers: LayersConfig = LayersConfig()
    joint: JointConfig = JointConfig()

    @model_validator(mode="after")
    def _names_fit(self) -> "Config":
        names = [teacher.name for teacher in self.teachers]
        if len(names) < 2:
            raise ValueError(f"teachers: at least two are needed, given: {names}")
        if len(set(names)) < len(names):
            raise ValueError(f"teachers: names must be unique, they are {names}")
        if isinstance(self.codes.widths, LikeTeacher) and self.codes.widths.like not in names:
            raise ValueError(f"codes.widths.like: no teacher {self.codes.widths.like!r}; there are {names}")
        for tap, paths in (self.taps or {}).items():
            if isinstance(paths, dict) and set(paths) != set(names):
                raise ValueError(f"taps.{tap}: names {sorted(paths)}, needs every teacher of {names}")
        return self

    @model_validator(mode="after")
    def _batches_split(self) -> "Config":
        for key in ("codes", "layers", "joint"):
            check_batch(f"{key}.batch_size", getattr(self, key).batch_size, self.ray.workers)
        for teacher in self.teachers:
            if teacher.training is not None:
                key = f"teachers.{teacher.name}.training.batch_size"
                check_batch(key, teacher.training.batch_size, self.ray.workers)
        return self


class TeachConfig(_Run):
    """`ka-ray teach`: train one teacher on the labelled images of its classes."""

    teacher: TeacherConfig

    @model_validator(mode="after")
    def _can_train(self) -> "TeachConfig":
        if self.teacher.training is None:
            raise ValueError("teacher.training: is missing; give at least {epochs: N}")
        check_batch("teacher.training.batch_size", self.teacher.training.batch_size, self.ray.workers)
        return self


def check_batch(key: str, batch_size: int, workers: int) -> None:
    """Refuse a global batch that the workers cannot share evenly (their gradients are averaged)."""
    if batch_size % workers:
        raise ValueError(f"{key}: {batch_size} is not divisible by ray.workers = {workers}")
