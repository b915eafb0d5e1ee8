"""The stage `codes`: train or compute each tap's chain of auto-encoders, one after the other.

A *link* is one auto-encoder of a chain. Only the method `incremental` has chains of more than one link.
"""

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
from ka_ray.numerics.ridge import NUM_SOLVER_DRAWS
from ka_ray.stages.code_solver import solve_links
from ka_ray.stages.codes_learner import (
    CodesLearner,
    build_amalgamations,
    check_variances,
    measure_moments,
    standardise_codes,
)
from ka_ray.stages.held_out import split_feature_rows
from ka_ray.stages.inputs import (
    StageInputs,
    epoch_checkpoint_path,
    history_to_json,
    load_stage_weights,
    stage_summary_path,
)
from ka_ray.storage.files import read_json
from ka_ray.student import Student
from ka_ray.student.from_moments import LayerMoments, LayerMomentsMeter, unsupported_reason
from ka_ray.teachers.checkpoint import checkpoint_digest
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, ProgressCallback, fit


def learn_codes(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train or compute the auto-encoders of all taps.

    Returns:
        Tap name -> chain of auto-encoders, and the stage's summary with each tap's error and its optimum.
    """
    config, plan = inputs.config.codes, inputs.plan
    exact = config.solver == "exact"
    stacked = {tap: shape[0] for tap, shape in plan.shapes.items()}
    batches = _batches(inputs, list(stacked), positions_per_image=config.positions_per_image)
    began = time.perf_counter()
    moments, next_layer_stats = (
        _measure(inputs, stacked) if exact else (measure_moments(batches, stacked), {})
    )
    amalgamations = build_amalgamations(config.method, plan.channels, plan.spec.widths).to(inputs.device)
    reused = _reuse_links(inputs, amalgamations)
    links = range(reused, len(cast(Amalgamation, next(iter(amalgamations.values()))).links))
    if exact:
        seconds, history = solve_links(amalgamations, links, moments, next_layer_stats), list[Progress]()
    else:
        seconds, history = _train_links(inputs, amalgamations, links, moments, batches)
    if config.basis == "principal":
        # Codes that are chosen channels keep their scale, because the next layer's activation depends on it.
        standardise_codes(amalgamations, moments)
    amalgamations.cpu()
    taps = {tap: _errors(cast(Amalgamation, amalgamations[tap]), moments[tap].cpu()) for tap in stacked}
    if exact:
        history = [_exact_record(taps, len(batches.rows), time.perf_counter() - began)]
        inputs.report(history[0])
    return amalgamations, _summarise(inputs, taps, reused, seconds, history)


def _batches(inputs: StageInputs, columns: list[str], **options: Any) -> Batches:
    """Return batches of the stored features, behind a start without the images that judge the student."""
    rows = None if inputs.config.student.start == "random" else split_feature_rows(inputs)[0]
    return inputs.batches("codes", inputs.store(FEATURES), columns, rows=rows, **options)


def _exact_record(taps: Mapping[str, Mapping[str, Any]], images: int, seconds: float) -> Progress:
    """Return the record of codes that are computed exactly: one epoch, with the errors in place of losses."""
    errors = {tap: float(entry["relative_error"]) for tap, entry in taps.items()}
    return Progress(
        stage="codes", epoch=1, epochs=1, step=1, steps=1, images=images, seconds=seconds, losses=errors
    )


def _summarise(
    inputs: StageInputs,
    taps: dict[str, dict[str, Any]],
    reused: int,
    seconds: list[float],
    history: list[Progress],
) -> dict[str, Any]:
    """Return the stage's summary. What a later run needs to extend this one is part of it."""
    return {
        "taps": taps,
        "shapes": inputs.plan.code_shapes(),
        "links": {
            "reused": reused,
            "trained": len(seconds),
            "seconds": [*_link_seconds(inputs, reused), *seconds],
        },
        "teachers": {
            teacher.name: checkpoint_digest(teacher.checkpoint)
            for teacher in inputs.config.teachers
            if teacher.checkpoint is not None
        },
        "history": history_to_json(history),
    }


def _measure(
    inputs: StageInputs, stacked: Mapping[str, int]
) -> tuple[dict[str, Moments], dict[str, LayerInputStats]]:
    """Measure the statistics from which exact codes are computed.

    Returns:
        Tap name -> moments of its stacked features; and, for codes that are chosen channels, tap name ->
        covariances of its channels as the next layer receives them.
    """
    config, positions = inputs.config.codes, inputs.config.codes.positions_per_image
    if config.basis == "principal":
        # With one random number per image, from which the positions are sampled.
        batches = _batches(inputs, list(stacked), num_draws=1)
        return measure_moments(batches, stacked, positions), {}
    if unsupported_reason(inputs.plan.spec, stacked) is not None:
        # Without the next layer's targets, channels are chosen by what they explain of each other behind the
        # activation. The user was told at the start of the run (see runs/steps.py).
        activations = Student(inputs.plan.spec).activations()
        batches = _batches(inputs, list(stacked), num_draws=1)
        activated = measure_moments(batches, stacked, positions, activations)
        moments = measure_moments(batches, stacked, positions)
        return moments, {tap: LayerInputStats(part.covariance) for tap, part in activated.items()}
    meter = LayerMomentsMeter(inputs.plan.spec, stacked, positions, device=inputs.device)
    columns = ["image", SCORES, *stacked]
    for batch in _batches(inputs, columns, num_draws=NUM_SOLVER_DRAWS).single_pass():
        meter.add(batch)
    layer_moments = LayerMoments(meter.spec, merge_moments_over_ranks(meter.total))
    check_variances(layer_moments.stacked_moments)
    return layer_moments.stacked_moments, {tap: layer_moments.next_layer_stats(tap) for tap in stacked}


def _train_links(
    inputs: StageInputs,
    amalgamations: nn.ModuleDict,
    links: range,
    moments: Mapping[str, Moments],
    batches: Batches,
) -> tuple[list[float], list[Progress]]:
    """Train links of each tap's chain.

    Returns:
        Seconds per link, and one record per epoch over all links.
    """
    method, channels = inputs.config.codes.method, inputs.plan.channels
    history, seconds = list[Progress](), list[float]()
    for link in links:
        learner = CodesLearner(method, moments, amalgamations, channels, link).to(inputs.device)
        shift = _shift_records(history, len(links))
        settings = replace(
            inputs.settings("codes"), checkpoint=epoch_checkpoint_path(inputs.folder, f"codes_{link}")
        )
        epochs = fit(learner, batches, settings, _compose(shift, inputs.report))
        history += [shift(record) for record in epochs]
        seconds.append(epochs[-1].seconds)
        learner.write_back_links()
    return seconds, history


def _errors(amalgamation: Amalgamation, moments: Moments) -> dict[str, Any]:
    width = amalgamation.code_channels
    return {
        "width": width,
        "stacked": len(moments.mean),
        "relative_error": amalgamation.relative_error(moments),
        "optimal_relative_error": moments.optimal_relative_error(width),
    }


def _shift_records(history: list[Progress], num_links: int) -> Callable[[Progress], Progress]:
    """Return a function that makes the next link's records continue the counts of the earlier links."""
    epochs, images = len(history), history[-1].images if history else 0
    seconds = history[-1].seconds if history else 0.0

    def shift(progress: Progress) -> Progress:
        return replace(
            progress,
            epoch=progress.epoch + epochs,
            epochs=progress.epochs * num_links,
            images=progress.images + images,
            seconds=progress.seconds + seconds,
        )

    return shift


def _compose(shift: Callable[[Progress], Progress], report: ProgressCallback) -> ProgressCallback:
    return lambda progress: report(shift(progress))


def _reuse_links(inputs: StageInputs, amalgamations: nn.ModuleDict) -> int:
    """Copy the links of the extended run into the chains, bit for bit, and return how many a chain has."""
    extended, method = inputs.config.extend, inputs.config.codes.method
    # Only an incremental chain keeps its links when a teacher is added. Other methods have a single
    # auto-encoder over all teachers, which must be trained again.
    if extended is None or method != "incremental":
        return 0
    weights = load_stage_weights(extended, "codes")
    links = {name: weight for name, weight in weights.items() if ".links." in name}
    # Not strict: the chain has one link more than the extended run, and a scale that is measured again.
    amalgamations.load_state_dict(links, strict=False)
    return len({name.split(".")[2] for name in links})  # names are "<tap>.links.<number>..."


def _link_seconds(inputs: StageInputs, reused: int) -> list[float]:
    """Return the seconds that the reused links took in the run that trained them."""
    if not reused or inputs.config.extend is None:
        return []
    summary = read_json(stage_summary_path(inputs.config.extend, "codes"))
    return list(summary["links"]["seconds"][:reused])
