"""The stage that learns the codes: every tap's chain of auto-encoders, link after link."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from torch import nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES
from ka_ray.numerics.channel_selection import LayerInputStats
from ka_ray.numerics.moments import Moments
from ka_ray.numerics.named_moments import merge_moments_over_ranks
from ka_ray.numerics.ranks import rank
from ka_ray.numerics.ridge import NUM_SOLVER_DRAWS
from ka_ray.stages.code_solver import solve_links
from ka_ray.stages.codes_learner import (
    CodesLearner,
    build_amalgamations,
    check_variances,
    measure_moments,
    standardise,
)
from ka_ray.stages.inputs import StageInputs, epoch_file, load_weights, records, stage_summary_path
from ka_ray.storage.files import read_json
from ka_ray.student import Student
from ka_ray.student.from_moments import LayerMoments, LayerMomentsMeter, unsupported_reason
from ka_ray.teachers.checkpoint import checkpoint_digest
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, ProgressCallback, fit


def learn_codes(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train or compute every tap's auto-encoders, link after link; report error and least error."""
    config, plan = inputs.config.codes, inputs.plan
    stacked = {tap: shape[0] for tap, shape in plan.shapes.items()}
    store, positions = inputs.store(FEATURES), config.positions_per_image
    batches = inputs.batches("codes", store, list(stacked), positions_per_image=positions)
    began = time.perf_counter()
    moments, next_layer_stats = (
        _measure(inputs, stacked) if config.solver == "exact" else (measure_moments(batches, stacked), {})
    )
    amalgamations = build_amalgamations(config.method, plan.channels, plan.spec.widths).to(inputs.device)
    reused = _reuse_links(inputs, amalgamations)
    links = range(reused, len(cast(Amalgamation, next(iter(amalgamations.values()))).links))
    if config.solver == "exact":
        seconds, history = solve_links(amalgamations, links, moments, next_layer_stats), list[Progress]()
    else:
        seconds, history = _train_links(inputs, amalgamations, links, moments, batches)
    if config.basis == "principal":
        standardise(amalgamations, moments)
    amalgamations.cpu()
    taps = {tap: _errors(cast(Amalgamation, amalgamations[tap]), moments[tap].cpu()) for tap in stacked}
    if config.solver == "exact":
        losses = {tap: errors["relative_error"] for tap, errors in taps.items()}
        taken = time.perf_counter() - began
        history = [Progress("codes", 1, 1, 1, 1, len(batches.rows), taken, losses)]
        if rank() == 0:
            inputs.report(history[0])
    kept = {"reused": reused, "trained": len(links), "seconds": [*_link_seconds(inputs, reused), *seconds]}
    digests = {
        t.name: checkpoint_digest(t.checkpoint) for t in inputs.config.teachers if t.checkpoint is not None
    }
    summary = {"taps": taps, "shapes": plan.code_shapes(), "links": kept, "teachers": digests}
    return amalgamations, summary | {"history": records(history)}


def _measure(
    inputs: StageInputs, stacked: Mapping[str, int]
) -> tuple[dict[str, Moments], dict[str, LayerInputStats]]:
    """Measure what exact codes are computed from; of channels also what the next layer sees of them."""
    store, config = inputs.store(FEATURES), inputs.config.codes
    positions = config.positions_per_image
    if config.basis == "principal":
        batches = inputs.batches("codes", store, list(stacked), num_draws=1)
        return measure_moments(batches, stacked, positions), {}
    if unsupported_reason(inputs.plan.spec, stacked) is not None:  # the user was told: see steps.py
        activations = Student(inputs.plan.spec).activations()
        batches = inputs.batches("codes", store, list(stacked), num_draws=1)
        activated = measure_moments(batches, stacked, positions, activations)
        moments = measure_moments(batches, stacked, positions)
        return moments, {tap: LayerInputStats(part.covariance) for tap, part in activated.items()}
    meter = LayerMomentsMeter(inputs.plan.spec, stacked, positions, device=inputs.device)
    for batch in inputs.batches(
        "codes", store, ["image", SCORES, *stacked], num_draws=NUM_SOLVER_DRAWS
    ).single_pass():
        meter.add(batch)
    one_pass = LayerMoments(meter.spec, merge_moments_over_ranks(meter.total))
    check_variances(one_pass.stacked)
    return one_pass.stacked, {tap: one_pass.next_layer_stats(tap) for tap in stacked}


def _train_links(
    inputs: StageInputs,
    amalgamations: nn.ModuleDict,
    links: range,
    moments: Mapping[str, Moments],
    batches: Batches,
) -> tuple[list[float], list[Progress]]:
    """Train links of every tap's chain; give the seconds that each took, and the history of all."""
    method, channels = inputs.config.codes.method, inputs.plan.channels
    history, seconds = list[Progress](), list[float]()
    for link in links:
        learner = CodesLearner(method, moments, amalgamations, channels, link).to(inputs.device)
        later = _after(history, len(links))
        settings = replace(inputs.settings("codes"), checkpoint=epoch_file(inputs.folder, f"codes_{link}"))
        ended = fit(learner, batches, settings, _through(later, inputs.report))
        history += [later(record) for record in ended]
        seconds.append(ended[-1].seconds)
        learner.finish()
    return seconds, history


def _errors(amalgamation: Amalgamation, moments: Moments) -> dict[str, Any]:
    width = amalgamation.code_channels
    return {
        "width": width,
        "stacked": len(moments.mean),
        "relative_error": amalgamation.relative_error(moments),
        "optimal_relative_error": moments.optimal_relative_error(width),
    }


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


def _through(change: Callable[[Progress], Progress], report: ProgressCallback) -> ProgressCallback:
    return lambda progress: report(change(progress))


def _reuse_links(inputs: StageInputs, amalgamations: nn.ModuleDict) -> int:
    """Copy the links of the run that is extended, bit for bit; give how many there are."""
    extended, method = inputs.config.extend, inputs.config.codes.method
    if extended is None or method != "incremental":
        return 0
    known = load_weights(extended, "codes")
    links = {name: weight for name, weight in known.items() if ".links." in name}
    amalgamations.load_state_dict(links, strict=False)
    return len({name.split(".")[2] for name in links})


def _link_seconds(inputs: StageInputs, reused: int) -> list[float]:
    """Tell how long the links that are used again took in the runs that trained them."""
    if not reused or inputs.config.extend is None:
        return []
    summary = read_json(stage_summary_path(inputs.config.extend, "codes"))
    return list(summary["links"]["seconds"][:reused])
