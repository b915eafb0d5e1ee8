"""The sentences of a report as plain text, the same for Markdown and HTML.

Names in them are as users gave them. Parts between two backticks are code, as
:func:`ka_ray.reports.plain_text.escape_markdown` reads them.
"""

import re
import shlex
from collections.abc import Iterator

from ka_ray.reports.gates import GateQuality
from ka_ray.reports.networks import SPEED_BATCH
from ka_ray.reports.plain_text import format_code
from ka_ray.reports.sections import Accuracy, MlflowRun, ReportContent, StartQuality
from ka_ray.reports.tables import format_share

NO_LABELS_NOTE = (
    "The images have no labels, so accuracy cannot be measured. Only the agreement of the student with the "
    "ensemble of its teachers is reported."
)
"""What the report says if no image has a label."""

CODES_NOTE = (
    "Errors are shares of variance: of the stacked features for a code, of the code for a layer. "
    "The lowest possible error is that of the best linear code with as many channels."
)
"""What the errors in the table of codes and layers mean."""

GATE_TABLE_NOTE = (
    "On the labelled evaluation images. The gap is that between the ensemble without a gate and one that "
    "knows every owner."
)
"""What the table of a gate's worth shows."""


def describe_networks(report: ReportContent) -> str:
    """Return the number of classes and teachers."""
    return f"{len(report.classes)} classes, {len(report.accuracy.per_teacher)} teachers, one student"


def describe_method(report: ReportContent) -> Iterator[str]:
    """Yield how the student was made, one paragraph each."""
    centered = ", after each teacher's scores were centred" if report.centered else ""
    yield f"Method: `{report.method}`. The teachers' scores are combined by `{report.rule}`{centered}."
    if report.overlap:
        shared = ", ".join(f"{name} ({', '.join(teachers)})" for name, teachers in report.overlap.items())
        yield f"Classes that several teachers know: {shared}."
    extension = report.extension
    if extension is not None:
        saved = (
            f"This saved {extension.saved_seconds:.1f} s of training."
            if extension.reused
            else "All auto-encoders were trained again, so no time was saved."
        )
        yield (
            f"This run extends {format_code(extension.extended)}. Per tap it reused {extension.reused} "
            f"auto-encoder(s) and trained {extension.trained} in {extension.seconds:.1f} s. {saved}"
        )


def describe_agreement(accuracy: Accuracy) -> str:
    """Return how often student and ensemble predict the same class."""
    return (
        f"Agreement of student and ensemble on {accuracy.images:,} images: "
        f"{format_share(accuracy.agreement)} (share of the images for which both predict the same class)."
    )


def describe_disputed(report: ReportContent) -> str:
    """Return on how many images student and ensemble disagree, and which of them are shown; empty if none."""
    accuracy, shown = report.accuracy, len(report.disputed)
    if not shown or accuracy.agreement is None:
        return ""
    number = round((1 - accuracy.agreement) * accuracy.images)
    which = "All are shown" if shown == number else f"The {shown} for which both are surest are shown"
    return (
        f"Student and ensemble predict different classes for {number:,} of {accuracy.images:,} images. "
        f"{which}, with both answers and how sure each is."
    )


def describe_measured_images(accuracy: Accuracy) -> Iterator[str]:
    """Yield which images the accuracies were measured on, and how."""
    yield f"Measured on {accuracy.labelled:,} labelled images out of {accuracy.images:,}."
    if accuracy.unmatched:
        left_out = sum(accuracy.unmatched.values())
        yield f"Left out are {left_out:,} images whose labels are no classes of the student."
    if accuracy.per_teacher:
        yield "On the classes of one teacher, only the scores of these classes are compared."


def describe_used_gate(used: str) -> str:
    """Return which gate the student's scores went through.

    Args:
        used: Its name; ``none`` for no gate.
    """
    gate = f"the gate `{used}`" if used != "none" else "no gate"
    return f"The student learned from scores with {gate}: a gate says which teacher's classes an image shows."


def describe_gate(name: str, gate: GateQuality) -> str:
    """Return what a gate does, what it learned from, and how good it is.

    Args:
        name: The name of the gate.
        gate: Its quality.
    """
    changed = format_share(gate.changed)
    text = f"`{name}`: gives {changed} of the images to another teacher than the scores alone do"
    if gate.left_out:
        text += f", and leaves out {format_share(gate.left_out)}, which belong to nobody"
    hints = ", ".join(f"{count:,} images of {owner}" for owner, count in gate.hints.items())
    check = gate.check
    if gate.extended is not None:
        text += (
            f". Among the teachers of {format_code(str(gate.extended))}, it divides by the gate of that run; "
            "between these together and each added teacher, the scores decide."
        )
        return text + (f" Known are {hints}." if hints else "")
    if check is None:
        return f"{text}. " + (
            f"Known are {hints}; for the others the scores decide."
            if hints
            else f"It taught itself ({gate.seconds:.1f} s)."
        )
    right, before = format_share(check.owner_accuracy), format_share(check.ungated_owner_accuracy)
    text += (
        f". It learned from {hints} ({gate.seconds:.1f} s). In cross-validation it finds {right} "
        f"of the owners; the scores alone find {before}."
    )
    if check.nobody_found is not None:
        text += (
            f" It would leave out {format_share(check.nobody_found)} of nobody's images, and "
            f"{format_share(check.lost)} of the teachers'."
        )
    curve = ", ".join(f"{count}: {format_share(share)}" for count, share in check.learning_curve.items())
    return text + (f" By the number of images per teacher it would find: {curve}." if curve else "")


def describe_source(start: StartQuality) -> str:
    """Return where the student started, and what of it was random."""
    random = f" Random at its start were: {', '.join(start.random)}." if start.random else ""
    return f"The student started from: {start.source}.{random}"


def describe_speed(report: ReportContent) -> str:
    """Return what the speeds in the table of sizes were measured with; empty if they were not."""
    threads = report.size.threads
    if threads is None:
        return ""
    used = "1 thread" if threads == 1 else f"{threads} threads"
    return (
        f"Speeds are those of the command's CPU with {used}, from pixels to scores: one image alone, and "
        f"batches of at most {SPEED_BATCH}."
    )


def describe_kept_adapters(report: ReportContent) -> str:
    """Return which adapters are layers of the student; empty if none are."""
    if not report.kept_adapters:
        return ""
    kept = ", ".join(f"{tap} ({count:,} parameters)" for tap, count in report.kept_adapters.items())
    return f"Adapters that could not be folded are kept as layers of the student: {kept}."


def describe_cluster(report: ReportContent) -> str:
    """Return the size of the Ray cluster, and what the stages' work in its processes means."""
    ray, size = report.ray, "The Ray cluster had {0.nodes} node(s), {0.cpus:g} CPUs and {0.gpus:g} GPUs."
    work = " Work in processes side by side is added up; starting a process is not counted as work."
    return size.format(ray) + (work if any(speed.work for speed in report.stages.values()) else "")


def describe_timeline(report: ReportContent) -> str:
    """Return how much of the time until the report the steps took; nothing without steps."""
    if not report.timeline:
        return ""
    last, total = report.timeline[-1], sum(step.seconds for step in report.timeline)
    return (
        f"The steps took {total:,.1f} of the {last.began + last.seconds:,.1f} s until this report was "
        "written. Starting Python comes before them, and figures and MLflow's model after them."
    )


def find_browse_command(run: MlflowRun) -> str | None:
    """Return the address at which a browser shows the MLflow run, or the command that serves it.

    Args:
        run: Where the run is tracked.

    Returns:
        None if the run is not tracked.
    """
    if run.tracking_uri is None:
        return None
    # A server has a page to open; a database needs MLflow's user interface to be started first.
    if run.tracking_uri.startswith(("http://", "https://")):
        return run.tracking_uri
    own = re.fullmatch(r"sqlite:///(.+)/mlflow\.db", run.tracking_uri)
    if own is not None and "%" not in own[1]:  # quoted: no plain path
        return f"ka-ray browse {shlex.quote(own[1])}"
    return f"mlflow server --backend-store-uri {shlex.quote(run.tracking_uri)}"
