"""The last step of a run: write its report and figures, and log them to MLflow."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ka_ray.config import Config
from ka_ray.features.store import DONE, FEATURES, IMAGES
from ka_ray.reports.figures import draw_run_figures
from ka_ray.reports.gates import GateChoice
from ka_ray.reports.report import REPORT_PAGE, Report
from ka_ray.reports.sections import (
    Accuracy,
    ClusterResources,
    Extension,
    MlflowRun,
    StageName,
    StartQuality,
)
from ka_ray.reports.summaries import EvaluationSummary, ExtractionSummary
from ka_ray.reports.warnings import list_warnings, warn_of_lost_start
from ka_ray.runs.context import Run
from ka_ray.runs.costs import compute_speeds, measure_sizes
from ka_ray.runs.figures import draw_or_notify, write_or_notify
from ka_ray.runs.learned_images import warn_of_learned_images
from ka_ray.runs.origin import describe_origin
from ka_ray.runs.tracked import track_result
from ka_ray.stages import list_stages
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.summaries import (
    SUMMARIES,
    CodesSummary,
    JointSummary,
    LayersSummary,
    StageSummary,
    StartSummary,
)
from ka_ray.storage.files import exists
from ka_ray.student import load_student


def extraction_summaries(folder: Path) -> list[ExtractionSummary]:
    """Read the summaries of the passes that stored features and scores in an output folder."""
    files = [folder / part / DONE for part in (FEATURES, IMAGES)]
    return [ExtractionSummary.load(file) for file in files if file.exists()]


def stage_summaries(config: Config, folder: Path) -> dict[StageName, StageSummary]:
    """Read the summaries of all stages of a student.

    Args:
        config: The config that the student was learned with.
        folder: The folder with the results of its stages.
    """
    return {stage: SUMMARIES[stage].load(stage_summary_path(folder, stage)) for stage in list_stages(config)}


def publish(run: Run, evaluated: EvaluationSummary, gate: GateChoice | None = None) -> Report:
    """Write the report and its figures, and log them, the student and the metrics to MLflow.

    Args:
        run: The run, all of whose stages have finished.
        evaluated: The evaluation of the student.
        gate: The gates that were learned, and which one was used; None without gates.
    """
    folder, figures, tracker = run.folder, run.folder / "figures", run.tracker
    report = _build_report(run, evaluated, gate)
    report.save(folder)
    stages = stage_summaries(run.config, folder)
    histories: dict[str, list[dict[str, Any]]] = {
        stage: [asdict(record) for record in summary.history] for stage, summary in stages.items()
    }
    # Without labelled images there is no accuracy, and the confusion matrix would be all zeros.
    counts = evaluated.confusion.to_counts(len(report.classes))
    confusion = counts if report.accuracy.union is not None else None
    drawn = draw_or_notify(
        lambda: draw_run_figures(report.model_dump(), histories, confusion, figures), figures, run.notify
    )
    page = folder / REPORT_PAGE
    write_or_notify(lambda: [report.save_page(folder, drawn)], f"{page} is missing", run.notify)
    run.notify(*report.warnings)
    tracker.log_metrics(_all_metrics(report))
    for path in filter(exists, (folder / "report.json", folder / "report.md", page, figures)):
        tracker.log_artifact(path)
    track_result(run, report, load_student(folder, trust=True))
    return report


def _build_report(run: Run, evaluated: EvaluationSummary, gate: GateChoice | None) -> Report:
    config, plan, label_sets = run.config, run.plan, run.plan.label_sets
    stages, extraction = stage_summaries(config, run.folder), extraction_summaries(run.folder)
    codes, layers, joint = stages.get("codes"), stages.get("layers"), stages.get("joint")
    with run.timeline.step("measuring sizes and speeds of networks"):
        size = measure_sizes(config, run.plan.views, run.folder)
    return Report(
        name=config.name,
        classes=list(plan.spec.classes),
        accuracy=evaluated.accuracy,
        size=size,
        method=config.baseline or (config.codes.method if config.learns_layers else "start"),
        rule=label_sets.rule,
        centered=label_sets.center,
        overlap={name: list(teachers) for name, teachers in label_sets.overlap.items()},
        kept_adapters=dict(plan.kept_adapters),
        codes=codes.taps if isinstance(codes, CodesSummary) else {},
        extension=_extension(config, codes) if isinstance(codes, CodesSummary) else None,
        layers=layers.taps if isinstance(layers, LayersSummary) else {},
        start=_describe_start(stages, evaluated),
        choice=joint.choice if isinstance(joint, JointSummary) else None,
        gate=gate,
        warnings=_list_warnings(run, evaluated, stages),
        curve=evaluated.curve,
        disputed=evaluated.disputed,
        stages=compute_speeds(stages, extraction, evaluated),
        timeline=list(run.timeline.steps),
        ray=ClusterResources.model_validate(run.cluster.size),
        placements=[place for part in extraction for place in part.placements],
        unreadable=[name for part in [*extraction, evaluated] for name in part.unreadable],
        mlflow=MlflowRun(tracking_uri=run.tracker.tracking_uri, run_id=run.tracker.run_id),
        teacher_classes={name: list(classes) for name, classes in label_sets.by_teacher.items()},
        origin=describe_origin(run.folder, config.name),
    )


def _list_warnings(
    run: Run, evaluated: EvaluationSummary, stages: Mapping[StageName, StageSummary]
) -> list[str]:
    config, codes, layers = run.config, stages.get("codes"), stages.get("layers")
    joint = stages.get("joint")
    return [
        *warn_of_learned_images(run.training_images, run.evaluation_images, evaluated.learned_images),
        *list_warnings(
            evaluated.accuracy,
            codes.taps if isinstance(codes, CodesSummary) and config.codes.basis == "principal" else {},
            layers.taps if isinstance(layers, LayersSummary) else {},
            _losses_of_training(config, stages),
            config.student.start == "random",
        ),
        *warn_of_lost_start(joint.choice if isinstance(joint, JointSummary) else None),
    ]


def _losses_of_training(
    config: Config, stages: Mapping[StageName, StageSummary]
) -> dict[StageName, list[float]]:
    """Return the loss of each epoch, for stages whose epochs all train the same.

    Records of solved layers, and of chains of auto-encoders, are of different layers, one after another.
    """
    trained = {"joint"}
    if config.layers.solver == "sgd":
        trained.add("layers")
    if config.codes.solver == "sgd" and config.codes.method != "incremental":
        trained.add("codes")
    return {
        stage: [sum(record.losses.values()) for record in one.history]
        for stage, one in stages.items()
        if stage in trained
    }


def _describe_start(
    stages: Mapping[StageName, StageSummary], evaluated: EvaluationSummary
) -> StartQuality | None:
    summary = stages.get("start")
    if evaluated.start is None or not isinstance(summary, StartSummary):
        return None
    return StartQuality(
        source=summary.chosen,
        random=summary.random,
        candidates=summary.candidates,
        skipped=summary.skipped,
        accuracy=evaluated.start,
    )


def _extension(config: Config, codes: CodesSummary) -> Extension | None:
    """Return what this run reused from the earlier run that it extends; None if it extends none."""
    if config.extend is None:
        return None
    # A link is one auto-encoder in the chain of auto-encoders of a tap.
    extended = CodesSummary.load(stage_summary_path(config.extend, "codes"))
    return Extension(
        extended=str(config.extend),
        reused=codes.links.reused,
        trained=codes.links.trained,
        seconds=codes.seconds,
        saved_seconds=sum(extended.links.seconds[: codes.links.reused]),
    )


def _all_metrics(report: Report) -> dict[str, float]:
    metrics = final_metrics(report.accuracy)
    for tap, code in report.codes.items():
        metrics |= {f"codes/relative_error_{tap}": code.relative_error}
        metrics |= {f"codes/optimal_relative_error_{tap}": code.optimal_relative_error}
    if report.start is not None:
        metrics |= final_metrics(report.start.accuracy, "start")
    if report.gate is not None and report.gate.used in report.gate.gates:
        metrics |= {"gate/left_out": report.gate.gates[report.gate.used].left_out}
    metrics |= {f"layers/relative_error_{tap}": layer.relative_error for tap, layer in report.layers.items()}
    return metrics | {f"{stage}/seconds": speed.seconds for stage, speed in report.stages.items()}


def final_metrics(accuracy: Accuracy, stage: str = "evaluate") -> dict[str, float]:
    """Return the measured accuracies as MLflow metrics: name of the metric -> value.

    Args:
        accuracy: Accuracies of a student.
        stage: First part of the names.
    """
    keys = ("union", "ensemble", "ensemble_over_views", "agreement")
    metrics = {f"{stage}/{key}": getattr(accuracy, key) for key in keys}
    if accuracy.gate is not None:
        metrics |= {f"{stage}/gate_{key}": value for key, value in accuracy.gate.model_dump().items()}
    for name, pair in accuracy.per_teacher.items():
        metrics |= {f"{stage}/teacher_{name}": pair.teacher, f"{stage}/student_{name}": pair.student}
    return {name: value for name, value in metrics.items() if value is not None}
