"""The tables of a report as text, the same for Markdown and HTML."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from ka_ray.reports.choices import HeldOutQuality, StudentChoice
from ka_ray.reports.networks import NetworkSpeed
from ka_ray.reports.sections import Accuracy, ReportContent, StageName, StageSpeed, StartQuality
from ka_ray.reports.tables import format_share
from ka_ray.reports.timeline import TimelineStep

QUALITY_HEADER = ("divergence from the teacher followed worst", "agreement", "divergence from the ensemble")

SHORTEST_STEP_S = 0.05
"""Shorter steps and work are left out: one decimal of the seconds is shown."""


class Table(NamedTuple):
    """A table of text; names in it are as users gave them, not escaped."""

    header: Sequence[str]
    """Title of each column."""
    rows: Sequence[Sequence[str]]
    """One cell per column for each row; the first one says what the row is about."""


def accuracy_table(accuracy: Accuracy) -> Table:
    """Return the accuracies of teachers and student, on all classes and on those of each teacher."""
    ensemble, union = format_share(accuracy.ensemble), format_share(accuracy.union)
    rows = [("all classes (teachers: their ensemble)", ensemble, union)]
    if accuracy.ensemble_over_views is not None:
        # The student is only evaluated on one view, so its cell stays empty.
        over_views = format_share(accuracy.ensemble_over_views)
        rows.append(("all classes (teachers: their ensemble, averaged over views)", over_views, "-"))
    if accuracy.gate is not None:
        gated = format_share(accuracy.gate.ensemble)
        rows.append(("all classes (teachers: their ensemble, with the gate)", gated, union))
    for name, pair in accuracy.per_teacher.items():
        rows.append((f"classes of {name}", format_share(pair.teacher), format_share(pair.student)))
    return Table(("accuracy on images of", "teachers", "student"), rows)


def gate_table(accuracy: Accuracy) -> Table | None:
    """Return what the gate is worth on the labelled images; None if this was not measured."""
    gate = accuracy.gate
    if gate is None or gate.ensemble is None:
        return None
    rows = [
        ("without a gate", accuracy.ensemble, gate.ungated_owner_accuracy),
        ("with the gate", gate.ensemble, gate.owner_accuracy),
        ("every owner known", gate.oracle, None if gate.oracle is None else 1.0),
        ("student", accuracy.union, None),
    ]
    return Table(
        ("ensemble", "accuracy on all classes", "owner right", "share of the gap closed"),
        [
            (
                name,
                format_share(right),
                format_share(owner),
                format_share(gate.closed(accuracy.ensemble, right)),
            )
            for name, right, owner in rows
        ],
    )


def start_table(start: StartQuality, finished: Accuracy) -> Table:
    """Return the student before any step beside the finished one.

    Args:
        start: The student before any step.
        finished: The accuracies of the finished student.
    """
    students = {"before any step": start.accuracy, "finished": finished}
    rows = [(name, format_share(one.union), format_share(one.agreement)) for name, one in students.items()]
    return Table(("student", "accuracy on all classes", "agreement with the ensemble"), rows)


def candidates_table(start: StartQuality) -> Table:
    """Return the starts that were built and judged."""
    rows = [
        (f"{one.name} ({one.note})" if one.note else one.name, *_format_quality(one), f"{one.seconds:.1f}")
        for one in start.candidates
    ]
    return Table(("start", *QUALITY_HEADER, "seconds"), rows)


def choice_table(choice: StudentChoice) -> Table:
    """Return the students of which one was kept."""
    rows = [(name, *_format_quality(quality)) for name, quality in choice.qualities.items()]
    return Table(("student", *QUALITY_HEADER), rows)


def _format_quality(quality: HeldOutQuality) -> tuple[str, ...]:
    return tuple(
        f"{value:.3f}" for value in (quality.worst_divergence, quality.agreement, quality.divergence)
    )


def curve_table(report: ReportContent) -> Table:
    """Return the student after every epoch of joint learning."""
    # Every epoch is compared with the same ensemble, that of the finished run.
    ensemble = report.accuracy.ensemble
    rows = []
    for point in report.curve:
        union = point.accuracy.union
        ratio = f"{union / ensemble:.3f}" if union is not None and ensemble else "-"
        agreement = format_share(point.accuracy.agreement)
        rows.append((f"{point.images:,}", format_share(union), ratio, agreement))
    header = ("images processed", "accuracy, all classes", "accuracy / ensemble's accuracy", "agreement")
    return Table(header, rows)


def size_table(report: ReportContent) -> Table:
    """Return the sizes of the networks; the student comes first, because readers look for its size."""
    size = report.size
    networks = [("student", size.student), ("all teachers", size.teachers), *size.per_teacher.items()]
    rows = [
        (
            *(name, f"{one.parameters:,}", f"{one.macs / 1e6:,.2f}", f"{one.bytes / 1024**2:,.2f}"),
            *_format_speed(one.speed),
        )
        for name, one in networks
    ]
    costs = ("parameters", "million multiply-accumulates per image", "MiB")
    return Table(("network", *costs, "ms for one image", "images per second"), rows)


def _format_speed(speed: NetworkSpeed | None) -> tuple[str, str]:
    if speed is None:
        return "-", "-"
    return f"{speed.latency_ms:,.3g}", f"{speed.images_per_s:,.0f}"


def disputed_table(report: ReportContent) -> Table:
    """Return the images for which student and ensemble are surest of different classes."""
    rows = [
        (
            f"{image.student} ({image.student_probability:.0%})",
            f"{image.ensemble} ({image.ensemble_probability:.0%})",
            image.label or "-",
        )
        for image in report.disputed
    ]
    return Table(("student", "ensemble", "label"), rows)


def codes_table(report: ReportContent) -> Table:
    """Return the errors of the codes and of the student's layers, by tap."""
    # The scores have a layer but no code, and a tap may have a code but no layer: "-" marks what is missing.
    cells = {tap: ["-"] * 5 for tap in (*report.codes, *report.layers)}
    for tap, code in report.codes.items():
        errors = f"{code.relative_error:.3g}", f"{code.optimal_relative_error:.3g}"
        cells[tap][:3] = f"{code.width} of {code.stacked}", *errors
    for tap, layer in report.layers.items():
        # Only least squares has a ridge.
        solver = "gradient steps" if layer.ridge is None else f"least squares, ridge {layer.ridge:g}"
        solver = "put back: the start's" if layer.put_back else solver
        before = "" if layer.error_before is None else f" (start: {layer.error_before:.3g})"
        cells[tap][3:] = f"{layer.relative_error:.3g}{before}", solver
    rows = [(tap, *row) for tap, row in cells.items()]
    header = ("tap", "channels kept", "error of the code", "lowest possible error", "error of the layer")
    return Table((*header, "layer computed by"), rows)


def ordered_stages(report: ReportContent) -> dict[StageName, StageSpeed]:
    """Return the stages in the order in which they ran; ``report.json`` lists them as they were stored."""
    order = get_args(StageName)
    return dict(sorted(report.stages.items(), key=lambda item: order.index(item[0])))


def stages_table(report: ReportContent) -> Table:
    """Return the time and the throughput of each stage."""
    rows = [
        (
            stage,
            f"{speed.seconds:,.1f}",
            f"{speed.images_per_s:,.0f}" if speed.images_per_s else "-",
            _describe_work(speed.work),
        )
        for stage, speed in ordered_stages(report).items()
    ]
    return Table(("stage", "seconds", "images per second", "work in its processes, seconds"), rows)


def _describe_work(work: Mapping[str, float]) -> str:
    """Return the kinds of work that took any time, those that took most of it first."""
    longest_first = sorted(work.items(), key=lambda item: -item[1])
    told = [f"{kind} {seconds:,.1f}" for kind, seconds in longest_first if seconds >= SHORTEST_STEP_S]
    return ", ".join(told) or "-"


def shown_steps(report: ReportContent) -> list[TimelineStep]:
    """Return the steps of the command that took any time."""
    return [step for step in report.timeline if step.seconds >= SHORTEST_STEP_S]


def timeline_table(report: ReportContent) -> Table:
    """Return the steps of the command that took any time."""
    rows = [(step.step, f"{step.began:,.1f}", f"{step.seconds:,.1f}") for step in shown_steps(report)]
    return Table(("step", "began after seconds", "seconds"), rows)


def placements_table(report: ReportContent) -> Table:
    """Return where the actors of the teachers ran."""
    rows = [
        (p.teacher, p.node, p.device, ", ".join(map(str, p.gpus)) or "-", str(p.pid))
        for p in report.placements
    ]
    return Table(("teacher", "node", "device", "GPU ids", "process id"), rows)
