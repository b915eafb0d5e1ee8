"""The stage that learns the codes: every tap's chain of auto-encoders, link after link."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from safetensors.torch import load_file
from torch import nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.features.store import FEATURES
from ka_ray.teachers.checkpoint import digest
from ka_ray.training.codes import CodesLearner, empty_amalgamations, measure_moments, standardise
from ka_ray.training.fit import Progress, Report, fit
from ka_ray.training.inputs import StageInputs, records, stage_file


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
    seconds = _link_seconds(inputs, reused)
    for link in range(reused, num_links):
        learner = CodesLearner(config.method, moments, amalgamations, plan.channels, link).to(inputs.device)
        later = _after(history, num_links - reused)
        ended = fit(learner, batches, inputs.settings("codes"), _through(later, inputs.report))
        history += [later(record) for record in ended]
        seconds.append(ended[-1].seconds)
        learner.finish()
    standardise(amalgamations, moments)
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
    links = {"reused": reused, "trained": num_links - reused, "seconds": seconds}
    summary = {"taps": taps, "shapes": plan.code_shapes(), "links": links}
    digests = {t.name: digest(t.checkpoint) for t in inputs.config.teachers if t.checkpoint is not None}
    return amalgamations, summary | {"teachers": digests, "history": records(history)}


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
    links = {name: weight for name, weight in known.items() if ".links." in name}
    amalgamations.load_state_dict(links, strict=False)
    return len({name.split(".")[2] for name in links})


def _link_seconds(inputs: StageInputs, reused: int) -> list[float]:
    """Tell how long the links that are used again took in the runs that trained them."""
    if not reused or inputs.config.extend is None:
        return []
    summary = json.loads(stage_file(inputs.config.extend, "codes").read_text())
    return list(summary["links"]["seconds"][:reused])
