"""The stages that train: codes, layers, joint, in this order in one group of workers.

Each leaves ``stages/<stage>.safetensors`` and, written last, ``stages/<stage>.json``; a stage that stands is
not repeated. This module knows no Ray: called alone it is the plain loop, called by every worker of a
process group it is data-parallel.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from ka_ray.amalgamation import AutoEncoder, LabelSets
from ka_ray.config import Config, TrainingConfig
from ka_ray.features.store import DONE, FEATURES, IMAGES, Store, write_json
from ka_ray.images.augment import NUM_DRAWS
from ka_ray.plan import Plan
from ka_ray.student.joint import JointLearner
from ka_ray.student.layerwise import LayerwiseLearner, fold_adapters, relative_error
from ka_ray.student.network import SCORES, Student
from ka_ray.teachers import load_teacher
from ka_ray.teachers.checkpoint import save_weights
from ka_ray.training.batches import Batches
from ka_ray.training.codes import CodesLearner, empty_autoencoders, measure_moments
from ka_ray.training.fit import FitSettings, Report, fit
from ka_ray.training.ranks import rank, sum_over_ranks, wait_for_all


@dataclass(frozen=True)
class StageInputs:
    """What a stage works with.

    Attributes:
        config: The run.
        plan: What is built.
        folder: The run's output folder, reachable by every worker.
        device: Of this worker.
        report: Told the progress, on rank 0.
    """

    config: Config
    plan: Plan
    folder: Path
    device: torch.device
    report: Report

    def batches(self, stage: str, columns: list[str], num_draws: int = 0, positions: int = 0) -> Batches:
        """Open the stored features (for joint learning: all stored images) for a stage."""
        settings: TrainingConfig = getattr(self.config, stage)
        folders = [self.folder / FEATURES]
        if stage == "joint" and (self.folder / IMAGES / DONE).exists():
            folders.append(self.folder / IMAGES)
        store, seed = Store(*folders), self.config.seed
        return Batches(store, columns, settings.batch_size, seed, num_draws, positions, self.device)

    def settings(self, stage: str) -> FitSettings:
        """The stage's epochs and rate."""
        section: TrainingConfig = getattr(self.config, stage)
        beta2 = 0.999 if stage == "joint" else 0.95
        return FitSettings(stage, section.epochs, section.learning_rate, beta2=beta2)


def run_stages(inputs: StageInputs) -> None:
    """Run every stage that does not stand yet; rank 0 writes what each leaves."""
    for stage, learn in STAGES.items():
        if stage_file(inputs.folder, stage).exists():
            continue
        began = time.perf_counter()
        torch.manual_seed(inputs.config.seed)
        module, summary = learn(inputs)
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
    """Train one auto-encoder a tap; report its relative error beside the optimum's."""
    stacked, widths = _stacked(inputs), inputs.plan.spec.widths
    settings = inputs.config.codes
    batches = inputs.batches("codes", list(stacked), positions=settings.positions_per_image)
    moments = measure_moments(batches, stacked)
    learner = CodesLearner(settings.method, moments, widths).to(inputs.device)
    history = fit(learner, batches, inputs.settings("codes"), inputs.report)
    autoencoders = learner.cpu().collapse()
    taps = {
        tap: {
            "width": widths[tap],
            "stacked": stacked[tap],
            "relative_error": cast(AutoEncoder, autoencoders[tap]).relative_error(moments[tap].cpu()),
            "optimal_relative_error": moments[tap].optimal_relative_error(widths[tap]),
        }
        for tap in stacked
    }
    return autoencoders, {"taps": taps, "history": [asdict(record) for record in history]}


def _stacked(inputs: StageInputs) -> dict[str, int]:
    return {tap: shape[0] for tap, shape in inputs.plan.shapes.items()}


def learn_layers(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Learn every layer of the student from the code before it, then fold the adapters."""
    encoders = empty_autoencoders(_stacked(inputs), inputs.plan.spec.widths)
    load_stage(inputs.folder, "codes", encoders)
    learner = LayerwiseLearner(Student(inputs.plan.spec), encoders).to(inputs.device)
    batches = inputs.batches("layers", ["image", SCORES, *encoders])
    history = fit(learner, batches, inputs.settings("layers"), inputs.report)
    sums: dict[str, torch.Tensor] = {}
    for batch in batches.once():
        for tap, part in learner.squared_errors(batch).items():
            sums[tap] = sums[tap] + part if tap in sums else part
    taps = {tap: {"relative_error": relative_error(sum_over_ranks(total))} for tap, total in sums.items()}
    return fold_adapters(learner), {"taps": taps, "history": [asdict(record) for record in history]}


def learn_jointly(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train the folded student end to end towards the amalgamated scores."""
    config = inputs.config.joint
    student = Student(inputs.plan.spec)
    load_stage(inputs.folder, "layers", student)
    teachers = []
    if config.augment.on:
        teachers = [load_teacher(teacher).to(inputs.device) for teacher in inputs.config.teachers]
    label_sets = LabelSets(inputs.plan.spec.label_sets)
    learner = JointLearner(student, config, label_sets, teachers).to(inputs.device)
    batches = inputs.batches("joint", ["image", SCORES], NUM_DRAWS if config.augment.on else 0)
    history = fit(learner, batches, inputs.settings("joint"), inputs.report)
    return learner.student, {"history": [asdict(record) for record in history]}


STAGES: dict[str, Callable[[StageInputs], tuple[nn.Module, dict[str, Any]]]] = {
    "codes": learn_codes,
    "layers": learn_layers,
    "joint": learn_jointly,
}
