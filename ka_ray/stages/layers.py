"""The stage `layers`: train or solve each layer of the student, from the code before it to its own code."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.numerics.relative_error import relative_error
from ka_ray.numerics.ridge import NUM_SOLVER_DRAWS
from ka_ray.stages.codes_learner import build_amalgamations
from ka_ray.stages.inputs import StageInputs, history_to_json, load_stage
from ka_ray.stages.layer_solver import LayerSolver
from ka_ray.stages.layers_learner import LayerwiseLearner, fold_adapters
from ka_ray.student import Student
from ka_ray.training.fit import Progress, fit


def learn_layers(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train or solve each layer of the student, then fold the adapters.

    Returns:
        The folded student, and the stage's summary with each layer's error.
    """
    plan, config = inputs.plan, inputs.config.layers
    encoders = build_amalgamations(inputs.config.codes.method, plan.channels, plan.spec.widths)
    load_stage(inputs.folder, "codes", encoders)
    learner = LayerwiseLearner(Student(plan.spec), encoders).to(inputs.device)
    store = inputs.store(FEATURES)
    batches = inputs.batches("layers", store, ["image", SCORES, *encoders])
    taps, history = dict[str, dict[str, float | None]](), list[Progress]()
    if config.solver == "least_squares":
        make_batches = partial(inputs.batches, "layers", store, num_draws=NUM_SOLVER_DRAWS)
        solver = LayerSolver(learner.student, encoders, config, make_batches, inputs.report)
        solutions, history = solver.solve()
        taps = {tap: {"relative_error": s.relative_error, "ridge": s.ridge} for tap, s in solutions.items()}
        learner.exclude_stages(solutions)
    if learner.trained_taps:
        # Train by gradient descent: all layers, or, after the solver, those that it could not solve because
        # they are not linear in their weights. The history counts images on from those of the solver.
        solver_images = history[-1].images if history else 0
        fitted = fit(learner, batches, inputs.settings("layers"), inputs.report)
        history += [replace(record, images=record.images + solver_images) for record in fitted]
        # The losses of the last epoch are means over changing weights, so one more pass measures the errors
        # of the final weights.
        sums: dict[str, torch.Tensor] = {}
        for batch in batches.single_pass():
            for tap, part in learner.error_sums(batch).items():
                sums[tap] = sums[tap] + part if tap in sums else part
        errors = {tap: relative_error(sum_over_ranks(total)) for tap, total in sums.items()}
        taps |= {tap: {"relative_error": error, "ridge": None} for tap, error in errors.items()}
    in_order = {tap: taps[tap] for tap in learner.student.stages}
    return fold_adapters(learner), {"taps": in_order, "history": history_to_json(history)}
