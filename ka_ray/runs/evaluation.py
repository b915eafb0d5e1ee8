"""Evaluate students and teachers: the last step of a run before its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ka_ray.amalgamation import LabelSets
from ka_ray.config import DESCRIPTIVE
from ka_ray.distributed.evaluate import evaluate_images
from ka_ray.distributed.evaluator import Evaluation
from ka_ray.distributed.resources import pools_of
from ka_ray.metrics import Counts
from ka_ray.reports.accuracy import measure_accuracy, with_labels
from ka_ray.reports.disputed import describe_dispute
from ka_ray.reports.sections import CurvePoint
from ka_ray.reports.summaries import Confusion, EvaluationSummary
from ka_ray.runs.context import Run
from ka_ray.runs.extension import list_extended_folders
from ka_ray.runs.gates import NO_GATES, Gates
from ka_ray.runs.learned_images import NOT_COMPARED, read_learned_digests
from ka_ray.stages import list_stages
from ka_ray.stages.inputs import epoch_students_folder, stage_summary_path
from ka_ray.stages.start import start_student_folder
from ka_ray.stages.summaries import JointSummary


def evaluate_students(
    run: Run, label_sets: LabelSets, students: Mapping[str, Path], gates: Gates = NO_GATES, disputed: str = ""
) -> tuple[dict[str, Counts], dict[str, Any]]:
    """Evaluate students and the teachers in one pass over the evaluation images.

    Args:
        run: The run.
        label_sets: The teachers' classes, and how scores are put together if there is no student.
        students: Name -> folder of each student; empty to evaluate only the teachers.
        gates: The gates, for students that learned from gated scores.
        disputed: The student whose most disputed images are kept; empty: of no student.

    Returns:
        The counts of every student, and what :func:`ka_ray.distributed.evaluate.evaluate_images` reports of
        the pass.
    """
    config, images, views = run.config, run.evaluation_images, run.plan.views
    learned = read_learned_digests([run.folder, *list_extended_folders(config)])
    last_layers = gates.last_layers if gates.of_students else {}
    if DESCRIPTIVE not in last_layers:  # its pixels are not needed, either
        images = images.with_views(views.without_descriptive().columns)
    run.notify(NOT_COMPARED if learned is None else None)
    work = Evaluation(
        images=images,
        label_sets=label_sets,
        teachers=config.teachers,
        students=students,
        pools=pools_of(config, run.resources.placement),
        scores=config.scores,
        read_columns=views.read_columns,
        gates=gates.of_students,
        last_layers=last_layers,
        trust=True,  # the run has named the function itself
        learned=learned,
        disputed=disputed,
    )
    with run.track_images("evaluate", len(images.ids)) as on_images:
        return evaluate_images(work, on_images)


def evaluate_student(run: Run, gates: Gates = NO_GATES) -> EvaluationSummary:
    """Evaluate the student, and its epochs if they were kept.

    Args:
        run: The run.
        gates: The gates, if it learned from gated scores.

    Returns:
        The accuracies, the confusion matrix and the accuracies after each epoch.
    """
    path, plan = stage_summary_path(run.folder, "evaluate"), run.plan
    if not path.exists():
        epochs = sorted(
            epoch_students_folder(run.folder).glob("*/student.json"), key=lambda p: int(p.parent.name)
        )
        students = {"student": run.folder} | {epoch.parent.name: epoch.parent for epoch in epochs}
        if "start" in list_stages(run.config):
            students["start"] = start_student_folder(run.folder)
        gates = gates.used_by(dict.fromkeys(students, run.config.scores.gate))
        counts, summary = evaluate_students(run, plan.label_sets, students, gates, disputed="student")
        labels, disputes = summary.pop("labels"), summary.pop("disputes")
        names = list(plan.label_sets.by_teacher)
        history = JointSummary.load(stage_summary_path(run.folder, "joint")).history
        curve = [
            CurvePoint(images=record.images, accuracy=measure_accuracy(counts[epoch.parent.name], names))
            for record, epoch in zip(history, epochs, strict=False)  # without `each_epoch`, none was kept
        ]
        EvaluationSummary(
            accuracy=with_labels(measure_accuracy(counts["student"], names), labels, plan.label_sets.classes),
            start=measure_accuracy(counts["start"], names) if "start" in counts else None,
            confusion=Confusion.of(counts["student"].student),
            curve=curve,
            disputed=[describe_dispute(one) for one in disputes],
            **summary,
        ).save(path)
    return EvaluationSummary.load(path)
