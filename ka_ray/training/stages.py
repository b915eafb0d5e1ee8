"""The stages that train: codes, layers, joint, in this order in one group of workers.

Each leaves ``stages/<stage>.safetensors`` and, written last, ``stages/<stage>.json``; a stage that stands is
not repeated. This module knows no Ray: called alone it is the plain loop, called by every worker of a
process group it is data-parallel.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.config import Config, TrainingConfig
from ka_ray.features.stack import SCORES
from ka_ray.features.store import DONE, FEATURES, IMAGES, Store, write_json
from ka_ray.images.augment import NUM_DRAWS
from ka_ray.plan import Plan
from ka_ray.student import Student, save_student
from ka_ray.student.fold import settle_norms
from ka_ray.student.joint import JointLearner, needs_teachers
from ka_ray.student.layerwise import LayerwiseLearner, fold_adapters, relative_error
from ka_ray.teachers import load_teacher
from ka_ray.teachers.checkpoint import digest, save_weights
from ka_ray.training.batches import Batches
from ka_ray.training.codes import CodesLearner, empty_amalgamations, measure_moments
from ka_ray.training.fit import FitSettings, Progress, Report, fit
from ka_ray.training.ranks import rank, sum_over_ranks, wait_for_all
from ka_ray.training.teaching import ClassifierLearner, class_targets

SETTLING_BATCHES = 20
"""From so many batches a student's batch norms take their statistics before joint learning."""


@dataclass(frozen=True)
class StageInputs:
    """What a stage works with.

    Attributes:
        config: The run.
        plan: What is built.
        data: The folder with the stored features and images, reachable by every worker.
        folder: Where the stages leave their results; the same folder, but for runs that share their data.
        device: Of this worker.
        report: Told the progress, on rank 0.
    """

    config: Config
    plan: Plan
    data: Path
    folder: Path
    device: torch.device
    report: Report

    def store(self, *folders: str) -> Store:
        """Open those of the stored folders that there are."""
        return Store(*[self.data / name for name in folders if (self.data / name / DONE).exists()])

    def batches(self, stage: str, store: Store, columns: list[str], **options: Any) -> Batches:
        """Batch a store as a stage's section of the config says."""
        section: TrainingConfig = getattr(self.config, stage)
        return Batches(store, columns, section.batch_size, self.config.seed, device=self.device, **options)

    def settings(self, stage: str) -> FitSettings:
        """The stage's epochs and rate."""
        section: TrainingConfig = getattr(self.config, stage)
        beta2 = 0.999 if stage == "joint" else 0.95
        images = self.config.joint.images if stage == "joint" else None
        return FitSettings(stage, section.epochs, section.learning_rate, beta2=beta2, images=images)


def run_stages(inputs: StageInputs) -> None:
    """Run every stage that does not stand yet; rank 0 writes what each leaves."""
    for stage in stages_of(inputs.config):
        if stage_file(inputs.folder, stage).exists():
            continue
        began = time.perf_counter()
        torch.manual_seed(inputs.config.seed)
        module, summary = STAGES[stage](inputs)
        if rank() == 0:
            summary["seconds"] = time.perf_counter() - began
            save_stage(inputs.folder, stage, module, summary)
        wait_for_all()


def stage_file(folder: Path, stage: str) -> Path:
    """The file that says a stage stands."""
    return folder / "stages" / f"{stage}.json"


def save_stage(folder: Path, stage: str, module: nn.Module, summary: dict[str, Any]) -> None:
    """Write a stage's weights, then its summary, each atomically."""
    weights_path = stage_file(folder, stage).with_suffix(".safetensors")
    weights_path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(module, weights_path)
    write_json(stage_file(folder, stage), summary)


def load_stage(folder: Path, stage: str, module: nn.Module) -> None:
    """Load what a stage left into a module of the same shape."""
    module.load_state_dict(load_file(stage_file(folder, stage).with_suffix(".safetensors")))


def learn_codes(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train every tap's auto-encoders, link after link; report their relative error beside the optimum's."""
    config, plan = inputs.config.codes, inputs.plan
    stacked = {tap: shape[0] for tap, shape in plan.shapes.items()}
    positions = config.positions_per_image
    batches = inputs.batches("codes", inputs.store(FEATURES), list(stacked), positions_per_image=positions)
    moments = measure_moments(batches, stacked)
    amalgamations = empty_amalgamations(config.method, plan.channels, plan.spec.widths).to(inputs.device)
    num_links = len(cast(Amalgamation, next(iter(amalgamations.values()))).links)
    reused = _reuse_links(inputs, amalgamations)
    history: list[Progress] = []
    for link in range(reused, num_links):
        learner = CodesLearner(config.method, moments, amalgamations, plan.channels, link).to(inputs.device)
        later = _after(history, num_links - reused)
        records = fit(learner, batches, inputs.settings("codes"), _through(later, inputs.report))
        history += [later(record) for record in records]
        learner.finish()
    amalgamations.cpu()
    taps = {
        tap: {
            "width": plan.spec.widths[tap],
            "stacked": stacked[tap],
            "relative_error": cast(Amalgamation, amalgamations[tap]).relative_error(moments[tap].cpu()),
            "optimal_relative_error": moments[tap].optimal_relative_error(plan.spec.widths[tap]),
        }
        for tap in stacked
    }
    links = {"reused": reused, "trained": num_links - reused}
    summary = {"taps": taps, "shapes": plan.code_shapes(), "links": links}
    digests = {t.name: digest(t.checkpoint) for t in inputs.config.teachers if t.checkpoint is not None}
    return amalgamations, summary | {"teachers": digests, "history": _records(history)}


def _after(history: list[Progress], num_links: int) -> Callable[[Progress], Progress]:
    """Let the records of the next link count on from those of the links before."""
    epochs, images = len(history), history[-1].images if history else 0
    seconds = history[-1].seconds if history else 0.0

    def later(progress: Progress) -> Progress:
        return replace(
            progress,
            epoch=progress.epoch + epochs,
            epochs=progress.epochs * num_links,
            images=progress.images + images,
            seconds=progress.seconds + seconds,
        )

    return later


def _through(change: Callable[[Progress], Progress], report: Report) -> Report:
    return lambda progress: report(change(progress))


def _reuse_links(inputs: StageInputs, amalgamations: nn.ModuleDict) -> int:
    """Copy the links of the run that is extended, bit for bit; give how many there are."""
    extended, method = inputs.config.extend, inputs.config.codes.method
    if extended is None or method != "incremental":
        return 0
    known = load_file(stage_file(extended, "codes").with_suffix(".safetensors"))
    amalgamations.load_state_dict(known, strict=False)
    return len({name.split(".")[2] for name in known})


def _records(history: list[Progress]) -> list[dict[str, Any]]:
    return [asdict(record) for record in history]


def learn_layers(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Learn every layer of the student from the code before it, then fold the adapters."""
    plan = inputs.plan
    encoders = empty_amalgamations(inputs.config.codes.method, plan.channels, plan.spec.widths)
    load_stage(inputs.folder, "codes", encoders)
    learner = LayerwiseLearner(Student(plan.spec), encoders).to(inputs.device)
    batches = inputs.batches("layers", inputs.store(FEATURES), ["image", SCORES, *encoders])
    history = fit(learner, batches, inputs.settings("layers"), inputs.report)
    sums: dict[str, torch.Tensor] = {}
    for batch in batches.once():
        for tap, part in learner.squared_errors(batch).items():
            sums[tap] = sums[tap] + part if tap in sums else part
    taps = {tap: {"relative_error": relative_error(sum_over_ranks(total))} for tap, total in sums.items()}
    return fold_adapters(learner), {"taps": taps, "history": _records(history)}


def learn_jointly(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train the student end to end: after its layers, or as a baseline from random weights."""
    student = Student(inputs.plan.spec)
    if inputs.config.baseline is None:
        load_stage(inputs.folder, "layers", student)
        _settle(inputs, student.to(inputs.device))
    learner, batches = _joint_learner(inputs, student)
    epochs = epochs_folder(inputs.folder)

    def report(progress: Progress) -> None:
        if progress.epoch_ended and inputs.config.evaluation.each_epoch:
            save_student(student, epochs / f"{progress.epoch:03d}")
        inputs.report(progress)

    history = fit(learner.to(inputs.device), batches, inputs.settings("joint"), report)
    return student, {"history": _records(history)}


def _joint_learner(inputs: StageInputs, student: Student) -> tuple[nn.Module, Batches]:
    config, store = inputs.config.joint, inputs.store(FEATURES, IMAGES)
    draws = NUM_DRAWS if config.augment.on else 0
    if inputs.config.baseline == "scratch":
        targets = class_targets(store, student.spec.classes, "baseline scratch")
        batches = inputs.batches("joint", store, ["image"], num_draws=NUM_DRAWS, targets=targets)
        return ClassifierLearner(student, config.augment), batches
    teachers = []
    if needs_teachers(config, inputs.config.scores):
        teachers = [load_teacher(teacher).to(inputs.device) for teacher in inputs.config.teachers]
    learner = JointLearner(student, config, inputs.config.scores, teachers)
    columns = ["image"] if teachers else ["image", SCORES]
    return learner, inputs.batches("joint", store, columns, num_draws=draws)


def _settle(inputs: StageInputs, student: Student) -> None:
    """Let the folded student's batch norms take the statistics of its own features, not of the codes."""
    if any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in student.modules()):
        batches = inputs.batches("joint", inputs.store(FEATURES, IMAGES), ["image"])
        shuffled = islice(batches.epoch(0), SETTLING_BATCHES)  # stored images may be sorted by class
        images = (batch["image"] for batch in shuffled)
        settle_norms(student, images, sum_over_ranks)


def epochs_folder(folder: Path) -> Path:
    """Where the student of every joint epoch is kept, if it is: one folder an epoch."""
    return folder / "stages" / "epochs"


STAGES: dict[str, Callable[[StageInputs], tuple[nn.Module, dict[str, Any]]]] = {
    "codes": learn_codes,
    "layers": learn_layers,
    "joint": learn_jointly,
}


def stages_of(config: Config) -> tuple[str, ...]:
    """Name the stages of a run, in order: a baseline learns its student in one."""
    return tuple(STAGES) if config.baseline is None else ("joint",)
