"""The stages that train: codes, layers, joint, in this order in one group of workers.

Each leaves ``stages/<stage>.safetensors`` and, written last, ``stages/<stage>.json``; a stage that stands is
not repeated. This module knows no Ray: called alone it is the plain loop, called by every worker of a
process group it is data-parallel.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from ka_ray.config import Config
from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.augment import NUM_DRAWS
from ka_ray.student import Student, save_student
from ka_ray.student.fold import settle_norms
from ka_ray.student.joint import JointLearner, needs_teachers
from ka_ray.student.layerwise import LayerwiseLearner, fold_adapters, relative_error
from ka_ray.student.least_squares import NUM_DRAWS as NUM_SOLVER_DRAWS
from ka_ray.teachers import load_teacher
from ka_ray.training.batches import Batches
from ka_ray.training.codes import empty_amalgamations
from ka_ray.training.fit import Progress, fit
from ka_ray.training.inputs import StageInputs, epochs_folder, load_stage, records, save_stage, stage_file
from ka_ray.training.links import learn_codes
from ka_ray.training.ranks import on_any_rank, rank, sum_over_ranks, wait_for_all
from ka_ray.training.solved import LayerSolver
from ka_ray.training.teaching import ClassifierLearner, class_targets

SETTLING_BATCHES = 20
"""From so many batches a student's batch norms take their statistics before joint learning."""


def run_stages(inputs: StageInputs) -> None:
    """Run every stage that does not stand yet; rank 0 writes what each leaves."""
    for stage in stages_of(inputs.config):
        if on_any_rank(stage_file(inputs.folder, stage).exists()):
            continue
        began = time.perf_counter()
        torch.manual_seed(inputs.config.seed)
        module, summary = STAGES[stage](inputs)
        if rank() == 0:
            summary["seconds"] = time.perf_counter() - began
            save_stage(inputs.folder, stage, module, summary)
        wait_for_all()


def learn_layers(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Learn every layer of the student from the code before it, then fold the adapters."""
    plan, config = inputs.plan, inputs.config.layers
    encoders = empty_amalgamations(inputs.config.codes.method, plan.channels, plan.spec.widths)
    load_stage(inputs.folder, "codes", encoders)
    learner = LayerwiseLearner(Student(plan.spec), encoders).to(inputs.device)
    store = inputs.store(FEATURES)
    batches = inputs.batches("layers", store, ["image", SCORES, *encoders])
    taps, history = dict[str, dict[str, float | None]](), list[Progress]()
    if config.solver == "least_squares":
        some = partial(inputs.batches, "layers", store, num_draws=NUM_SOLVER_DRAWS)
        solutions, history = LayerSolver(learner.student, encoders, config, some, inputs.report).solve()
        taps = {tap: {"relative_error": s.relative_error, "ridge": s.ridge} for tap, s in solutions.items()}
        learner.leave(solutions)
    if learner.learned:
        before = history[-1].images if history else 0
        fitted = fit(learner, batches, inputs.settings("layers"), inputs.report)
        history += [replace(record, images=record.images + before) for record in fitted]
        sums: dict[str, torch.Tensor] = {}
        for batch in batches.once():
            for tap, part in learner.squared_errors(batch).items():
                sums[tap] = sums[tap] + part if tap in sums else part
        errors = {tap: relative_error(sum_over_ranks(total)) for tap, total in sums.items()}
        taps |= {tap: {"relative_error": error, "ridge": None} for tap, error in errors.items()}
    in_order = {tap: taps[tap] for tap in learner.student.stages}
    return fold_adapters(learner), {"taps": in_order, "history": records(history)}


def learn_jointly(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train the student end to end: after its layers, or as a baseline from random weights."""
    student = Student(inputs.plan.spec)
    if inputs.config.baseline is None:
        load_stage(inputs.folder, "layers", student)
        _settle(inputs, student.to(inputs.device))
    if not inputs.config.joint.any_steps:
        return student, {"history": []}
    learner, batches = joint_learner(inputs, student)
    epochs = epochs_folder(inputs.folder)

    def report(progress: Progress) -> None:
        if progress.epoch_ended and inputs.config.evaluation.each_epoch:
            save_student(student, epochs / f"{progress.epoch:03d}")
        inputs.report(progress)

    history = fit(learner.to(inputs.device), batches, inputs.settings("joint"), report)
    return student, {"history": records(history)}


def joint_learner(inputs: StageInputs, student: Student) -> tuple[nn.Module, Batches]:
    """Make what learns a student jointly, and the batches that it sees."""
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


STAGES: dict[str, Callable[[StageInputs], tuple[nn.Module, dict[str, Any]]]] = {
    "codes": learn_codes,
    "layers": learn_layers,
    "joint": learn_jointly,
}


def stages_of(config: Config) -> tuple[str, ...]:
    """Name the stages of a run, in order: a baseline learns its student in one."""
    return tuple(STAGES) if config.baseline is None else ("joint",)
