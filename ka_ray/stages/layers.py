"""The stage that learns every layer of the student from the code before it."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.numerics.ridge import NUM_SOLVER_DRAWS as NUM_SOLVER_DRAWS
from ka_ray.stages.codes_learner import build_amalgamations
from ka_ray.stages.inputs import StageInputs, load_stage, records
from ka_ray.stages.layer_solver import LayerSolver
from ka_ray.stages.layers_learner import LayerwiseLearner, fold_adapters, relative_error
from ka_ray.student import Student
from ka_ray.training.fit import Progress, fit


def learn_layers(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Learn every layer of the student from the code before it, then fold the adapters."""
    plan, config = inputs.plan, inputs.config.layers
    encoders = build_amalgamations(inputs.config.codes.method, plan.channels, plan.spec.widths)
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
        for batch in batches.single_pass():
            for tap, part in learner.squared_errors(batch).items():
                sums[tap] = sums[tap] + part if tap in sums else part
        errors = {tap: relative_error(sum_over_ranks(total)) for tap, total in sums.items()}
        taps |= {tap: {"relative_error": error, "ridge": None} for tap, error in errors.items()}
    in_order = {tap: taps[tap] for tap in learner.student.stages}
    return fold_adapters(learner), {"taps": in_order, "history": records(history)}
