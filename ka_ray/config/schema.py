"""The config of a run, section by section; `jobs/configs/folder.yaml` explains every key."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ka_ray.config.base import AbsolutePath, ExistingPath, Section, with_defaults
from ka_ray.config.baselines import BaselinesConfig
from ka_ray.config.cluster import RayConfig
from ka_ray.config.factories import FactoriesSection
from ka_ray.config.job_paths import ClusterContext, in_job_folder
from ka_ray.config.joint import BEHIND_START, JointConfig
from ka_ray.config.load import load
from ka_ray.config.mixture import ImagesConfig
from ka_ray.config.placement import PlacementConfig
from ka_ray.config.ranges import Name, Seed
from ka_ray.config.scores import ScoresConfig
from ka_ray.config.stages import CodesConfig, ExtractConfig, LayersConfig, LikeTeacher
from ka_ray.config.student import STUDENT, StartConfig, StudentConfig, TapName, TapPath
from ka_ray.config.teachers import TeacherConfig
from ka_ray.config.tracking import TrackingConfig
from ka_ray.config.tune import TuneConfig


class EvaluationConfig(Section):
    """Which images the student is evaluated on."""

    images: ImagesConfig | None = Field(
        None, description="null: a share of `images` that is held out from training."
    )
    holdout: float = Field(
        0.1, gt=0, lt=1, description="Share of `images` to hold out; unused if `evaluation.images` is given."
    )
    each_epoch: bool = Field(
        False,
        description="Also evaluate the student after every joint epoch, for a learning curve. Which of "
        "them is the result does not depend on it: see `joint.keep`.",
    )


class _Run(FactoriesSection):
    name: Name = Field(description="Names the MLflow run and the output folder.")
    seed: Seed = Field(0, description="Seed of all random choices.")
    output: AbsolutePath | None = Field(None, description="null: runs/NAME")
    images: ImagesConfig = Field(description="Images that the student, or a taught teacher, learns from.")
    evaluation: EvaluationConfig = EvaluationConfig()
    extract: ExtractConfig = ExtractConfig()
    ray: RayConfig = RayConfig()
    placement: PlacementConfig = PlacementConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def load(
        cls, path: str | Path, overrides: Sequence[str] = (), cluster: ClusterContext | None = None
    ) -> Self:
        """Read a YAML file, apply overrides and validate everything.

        Args:
            path: The YAML file.
            overrides: Items ``dotted.key=value``, applied in this order.
            cluster: Context of a config that is sent to a cluster: absolute paths need not exist on this
                machine, relative ones are collected. None: the run starts here, so all paths must exist.

        Raises:
            InputError: A key cannot work; the message lists every such key.
        """
        return load(cls, path, overrides, cluster)

    @property
    def output_dir(self) -> Path:
        """The absolute output folder."""
        return self.output or (Path("runs") / self.name).absolute()

    @model_validator(mode="after")
    def _output_outlives_job(self) -> Self:
        if in_job_folder(self.output_dir):
            raise ValueError(
                f"output: {self.output_dir} lies in the job's temporary working directory, which is deleted; "
                "give --output with a shared path or URI"
            )
        return self


class Config(_Run):
    """A run that merges teachers: images, teachers, student, and the stages."""

    teachers: tuple[TeacherConfig, ...] = Field(description="At least two teachers.")
    taps: dict[TapName, TapPath] | None = Field(
        None,
        description="tap: module path, or {teacher: module path, ..., student: module path}; a path may say "
        "how the output is read (blocks.5:cls: the class token); "
        "null: every layer of the student's network, which must then be one of our families, such as plain.",
    )
    student: StudentConfig = Field(StudentConfig(), description="The network of the student.")
    baseline: Literal["distill", "scratch"] | None = Field(
        None,
        description="null: amalgamation. distill: learn from the scores only, from random weights unless "
        "`student.start` says otherwise; scratch: learn from labels, without teachers.",
    )
    extend: ExistingPath | None = Field(
        None, description="Output folder of a finished run to which this run adds teachers; null: none."
    )
    scores: ScoresConfig = Field(ScoresConfig(), description="How scores become targets.")
    codes: CodesConfig = Field(
        CodesConfig(), description="How codes, the amalgamated features of each tap, are learned."
    )
    layers: LayersConfig = Field(LayersConfig(), description="How the student's layers are learned.")
    joint: JointConfig = Field(JointConfig(), description="How the student is learned jointly.")
    baselines: BaselinesConfig = Field(BaselinesConfig(), description="What `ka-ray compare` compares with.")
    tune: TuneConfig = Field(TuneConfig(), description="What `ka-ray tune` tries.")

    @model_validator(mode="after")
    def _choose_defaults(self) -> "Config":
        """Choose the start, and how to learn behind it, where the config does not say it."""
        given = {"codes", "layers"} & self.model_fields_set
        asks_for_layers = self.extend is not None or (bool(given) and not self.layers.behind_start)
        start = "random" if asks_for_layers or self.baseline is not None else "auto"
        self.__dict__["student"] = with_defaults(self.student, {"start": start})
        if self.student.start != "random":
            self.__dict__["joint"] = with_defaults(self.joint, BEHIND_START)
        return self

    @model_validator(mode="after")
    def _names_are_consistent(self) -> "Config":
        names = [teacher.name for teacher in self.teachers]
        if len(names) < 2:
            raise ValueError(f"teachers: at least two are needed, given: {names}")
        if len(set(names)) < len(names) or STUDENT in names:
            raise ValueError(
                f"teachers: names must be unique and none {STUDENT!r}, they are {names}; `name` gives another"
            )
        if isinstance(self.codes.widths, LikeTeacher) and self.codes.widths.like not in names:
            raise ValueError(f"codes.widths.like: no teacher {self.codes.widths.like!r}; there are {names}")
        self.scores.check_owners(names, self.images.named_owners, self.images.has_owner_column)
        if self.gates and self.scores.rule is not None:
            raise ValueError(f"scores.rule: {self.scores.rule}; leave it out if a gate combines the scores")
        for tap, paths in (self.taps or {}).items():
            if isinstance(paths, dict) and set(paths) - {STUDENT} != set(names):
                raise ValueError(
                    f"taps.{tap}: names {sorted(paths)}, "
                    f"needs every teacher of {names} and may name {STUDENT!r}"
                )
        return self

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates that are prepared: owners, hints, self, extended."""
        return self.scores.list_gates(self.images.has_owners, self.extend is not None)

    @property
    def learns_layers(self) -> bool:
        """Whether codes and layers are learned, for which the teachers' features are stored."""
        return self.baseline is None and (self.student.start == "random" or self.layers.behind_start)

    @model_validator(mode="after")
    def _start_is_known(self) -> "Config":
        start, names = self.student.start, [teacher.name for teacher in self.teachers]
        if isinstance(start, StartConfig) and start.teacher is not None and start.teacher not in names:
            raise ValueError(f"student.start.teacher: no teacher {start.teacher!r}; there are {names}")
        if self.extend is not None and start != "random":  # by default, it is random with `extend`
            raise ValueError("extend: reuses auto-encoders, which only a student with start: random has")
        return self

    @model_validator(mode="after")
    def _has_what_it_learns_from(self) -> "Config":
        if self.baseline == "scratch" and not self.images.has_labels:
            raise ValueError("images: have no labels, and the baseline `scratch` learns from nothing else")
        if self.images.are_nobodys:
            raise ValueError("images: the owner of all is nobody, so that none is left to learn from")
        if self.baseline is not None and self.student.start == "random" and not self.joint.any_steps:
            raise ValueError(
                f"joint.epochs: 0, and the baseline {self.baseline!r} learns from nothing else; "
                "give epochs, or joint.images"
            )
        if self.baseline is not None and self.extend is not None:
            raise ValueError(f"extend: the baseline {self.baseline!r} has no auto-encoders to use again")
        return self

    @model_validator(mode="after")
    def _tuned_rates_are_used(self) -> "Config":
        if self.tune.learning_rates and not self.joint.any_steps:
            raise ValueError(
                "tune.learning_rates: need joint learning, which joint.epochs: 0 turns off; "
                "give epochs, or joint.images"
            )
        return self

    @model_validator(mode="after")
    def _batches_reach_all_workers(self) -> "Config":
        for key in ("codes", "layers", "joint"):
            check_batch(f"{key}.batch_size", getattr(self, key).batch_size, self.ray.worker_range[1])
        for name, section in (("distill", self.baselines.distill), ("scratch", self.baselines.scratch)):
            if section.batch_size is not None:
                check_batch(f"baselines.{name}.batch_size", section.batch_size, self.ray.worker_range[1])
        for teacher in self.teachers:
            if teacher.training is not None:
                key = f"teachers.{teacher.name}.training.batch_size"
                check_batch(key, teacher.training.batch_size, self.ray.worker_range[1])
        return self


class TeachConfig(_Run):
    """`ka-ray teach`: train one teacher on the labelled images of its classes."""

    teacher: TeacherConfig

    @model_validator(mode="after")
    def _can_train(self) -> "TeachConfig":
        if self.teacher.training is None:
            raise ValueError("teacher.training: is missing; give at least {epochs: N}")
        check_batch("teacher.training.batch_size", self.teacher.training.batch_size, self.ray.worker_range[1])
        return self


def check_batch(key: str, batch_size: int, workers: int) -> None:
    """Check that every training worker gets at least one image of each global batch.

    Args:
        key: The config key of the batch size.
        batch_size: Images per step, over all workers together.
        workers: The largest number of training workers.

    Raises:
        ValueError: A worker would get no image.
    """
    if batch_size < workers:
        raise ValueError(f"{key}: {batch_size} is smaller than ray.workers = {workers}, each needs an image")
