"""The stage `layers`: train or solve each layer of the student, from the code before it to its own code."""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES
from ka_ray.numerics.ridge import NUM_SOLVER_DRAWS
from ka_ray.stages.codes_learner import build_amalgamations
from ka_ray.stages.held_out import judging_batches, split_feature_rows
from ka_ray.stages.inputs import StageInputs, history_to_json, load_stage
from ka_ray.stages.layer_solver import LayerSolver
from ka_ray.stages.layers_behind_start import LayerComparison, express_codes, measure_errors
from ka_ray.stages.layers_learner import LayerwiseLearner, fold_adapters
from ka_ray.student import Student
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, fit


def learn_layers(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train or solve each layer of the student, then fold the adapters.

    Behind a start that is not random, some images are held out, on which layers that end worse than they
    began are put back.

    Returns:
        The folded student, and the stage's summary with each layer's error.
    """
    plan, config, store = inputs.plan, inputs.config, inputs.store(FEATURES)
    encoders = build_amalgamations(config.codes.method, plan.channels, plan.spec.widths)
    load_stage(inputs.folder, "codes", encoders)
    student, comparison, rows = Student(plan.spec), None, None
    columns = ["image", SCORES, *encoders]
    if config.student.start == "random":
        learner = LayerwiseLearner(student, encoders).to(inputs.device)
    else:
        load_stage(inputs.folder, "start", student)
        student, encoders = student.to(inputs.device), encoders.to(inputs.device)
        rows, held_out = split_feature_rows(inputs)
        drawn = inputs.batches("layers", store, columns, num_draws=NUM_SOLVER_DRAWS, rows=rows)
        encoders = express_codes(student, encoders, drawn, config.layers.positions_per_image)
        learner = LayerwiseLearner(student, encoders).to(inputs.device)
        judged = judging_batches(inputs, store, columns, config.layers.batch_size, held_out)
        comparison = LayerComparison(learner, judged)
    taps, history = _learn(inputs, learner, inputs.batches("layers", store, columns, rows=rows))
    if comparison is None:
        taps = {tap: {"error_before": None, "put_back": False, **taps[tap]} for tap in learner.student.stages}
    else:
        taps = {tap: taps[tap] | found for tap, found in comparison.put_back_worse().items()}
    return fold_adapters(learner), {"taps": taps, "history": history_to_json(history)}


def _learn(
    inputs: StageInputs, learner: LayerwiseLearner, batches: Batches
) -> tuple[dict[str, dict[str, Any]], list[Progress]]:
    """Learn the layers by the solver of the config; return tap -> error and ridge, and the history."""
    config, taps, history = inputs.config.layers, dict[str, dict[str, Any]](), list[Progress]()
    if config.solver == "least_squares":
        make_batches = partial(
            inputs.batches, "layers", batches.store, num_draws=NUM_SOLVER_DRAWS, rows=batches.rows
        )
        solver = LayerSolver(learner.student, learner.encoders, config, make_batches, inputs.report)
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
        errors = measure_errors(learner, batches, learner.trained_taps)
        taps |= {tap: {"relative_error": error, "ridge": None} for tap, error in errors.items()}
    return taps, history
