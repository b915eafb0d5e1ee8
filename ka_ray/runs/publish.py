"""The last step of a run: its report, its figures, and what the tracker keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ka_ray.config import Config
from ka_ray.features.store import DONE, FEATURES, IMAGES
from ka_ray.reports.figures import draw_run_figures
from ka_ray.reports.network_size import measure_size
from ka_ray.reports.report import Report
from ka_ray.runs.context import Run
from ka_ray.stages import list_stages
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.storage.files import read_json
from ka_ray.student import load_student
from ka_ray.teachers import load_teacher


def extraction_summaries(folder: Path) -> list[dict[str, Any]]:
    """Read what the extraction's parts say of themselves."""
    return [read_json(folder / part / DONE) for part in (FEATURES, IMAGES) if (folder / part / DONE).exists()]


def publish(run: Run, evaluated: dict[str, Any]) -> Report:
    """Write the report and its figures, and hand all to the tracker."""
    folder, tracker, plan = run.folder, run.tracker, run.plan
    stages = {stage: read_json(stage_summary_path(folder, stage)) for stage in list_stages(run.config)}
    extraction = extraction_summaries(folder)
    codes = stages.get("codes", {"taps": {}})
    report = Report.model_validate(
        {
            "name": run.config.name,
            "classes": list(plan.spec.classes),
            "accuracy": evaluated["accuracy"],
            "size": _sizes(run.config, folder),
            "method": run.config.baseline or run.config.codes.method,
            "rule": plan.label_sets.rule,
            "centered": plan.label_sets.center,
            "overlap": plan.label_sets.overlap,
            "kept_adapters": plan.kept_adapters,
            "codes": codes["taps"],
            "extension": _extension(run.config, codes),
            "layers": stages["layers"]["taps"] if "layers" in stages else {},
            "curve": evaluated["curve"],
            "stages": _speeds(stages, extraction, evaluated),
            "ray": run.cluster.size,
            "placements": [place for part in extraction for place in part["placements"]],
            "unreadable": [name for part in [*extraction, evaluated] for name in part["unreadable"]],
            "mlflow": {"tracking_uri": tracker.tracking_uri, "run_id": tracker.run_id},
        }
    )
    report.save(folder)
    histories = {stage: summary["history"] for stage, summary in stages.items()}
    confusion = np.array(evaluated["confusion"]) if report.accuracy.union is not None else None
    draw_run_figures(report.model_dump(), histories, confusion, folder / "figures")
    tracker.log_metrics(_all_metrics(report))
    for name in ("report.json", "report.md", "figures"):
        tracker.log_artifact(folder / name)
    tracker.log_student(load_student(folder))
    return report


def _extension(config: Config, codes: dict[str, Any]) -> dict[str, Any] | None:
    """Say what the run that is extended saved this one."""
    if config.extend is None:
        return None
    before = read_json(stage_summary_path(config.extend, "codes"))
    reused = codes["links"]["reused"]
    return {
        "extended": str(config.extend),
        "reused": reused,
        "trained": codes["links"]["trained"],
        "seconds": codes["seconds"],
        "saved_seconds": sum(before["links"]["seconds"][:reused]),
    }


def _sizes(config: Config, folder: Path) -> dict[str, Any]:
    image = torch.zeros(1, 3, config.images.size, config.images.size)
    per_teacher = {}
    for teacher in map(load_teacher, config.teachers):
        per_teacher[teacher.name] = measure_size(teacher.network, teacher.preprocess(image)).model_dump()
    total = {key: sum(size[key] for size in per_teacher.values()) for key in ("parameters", "macs", "bytes")}
    student = measure_size(load_student(folder), image).model_dump()
    return {"student": student, "teachers": total, "per_teacher": per_teacher}


def _speeds(
    stages: dict[str, dict[str, Any]], extraction: list[dict[str, Any]], evaluated: dict[str, Any]
) -> dict[str, dict[str, float]]:
    amounts = {stage: (images_seen(s), s["seconds"]) for stage, s in stages.items()}
    amounts["extract"] = (
        sum(p["images"] - p.get("resumed", 0) for p in extraction),
        sum(p["seconds"] for p in extraction),
    )
    amounts["evaluate"] = (evaluated["images"], evaluated["seconds"])
    return {
        s: {"seconds": seconds, "images_per_s": images / seconds} for s, (images, seconds) in amounts.items()
    }


def images_seen(summary: Mapping[str, Any]) -> int:
    """Read how many images a stage went through, again and again counted again."""
    history = summary["history"]
    return int(history[-1]["images"]) if history else 0


def _all_metrics(report: Report) -> dict[str, float]:
    metrics = final_metrics(report.accuracy.model_dump())
    for tap, code in report.codes.items():
        metrics |= {f"codes/relative_error_{tap}": code.relative_error}
        metrics |= {f"codes/optimal_relative_error_{tap}": code.optimal_relative_error}
    metrics |= {f"layers/relative_error_{tap}": layer.relative_error for tap, layer in report.layers.items()}
    return metrics | {f"{stage}/seconds": speed.seconds for stage, speed in report.stages.items()}


def final_metrics(accuracy: Mapping[str, Any]) -> dict[str, float]:
    """Name the accuracies that were measured as the tracker keeps them."""
    keys = ("union", "ensemble", "ensemble_over_views", "agreement")
    metrics = {f"evaluate/{key}": accuracy[key] for key in keys}
    for name, pair in accuracy["per_teacher"].items():
        metrics |= {f"evaluate/{who}_{name}": share for who, share in pair.items()}
    return {name: value for name, value in metrics.items() if value is not None}
