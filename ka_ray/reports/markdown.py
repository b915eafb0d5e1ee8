"""Write the report of a run as Markdown, for people."""

import shlex
from typing import get_args

from ka_ray.reports.choices import HeldOutQuality
from ka_ray.reports.gate_section import gate_section
from ka_ray.reports.plain_text import Markdown, escape_markdown, format_code
from ka_ray.reports.sections import Accuracy, ReportContent, StageName
from ka_ray.reports.tables import format_share, format_table
from ka_ray.reports.warnings import describe_choice

NO_LABELS_NOTE = (
    "The images have no labels, so accuracy cannot be measured. Only the agreement of the student with the "
    "ensemble of its teachers is reported."
)
"""What the report says if no image has a label."""


def report_to_markdown(report: ReportContent) -> str:
    """Return the report of a run as Markdown. Sections for which the run has no content are left out."""
    num_teachers = len(report.accuracy.per_teacher)
    sections = [
        "\n".join(f"> **Warning:** {escape_markdown(warning)}" for warning in report.warnings),
        f"# {report.name}: {len(report.classes)} classes, {num_teachers} teachers, one student",
        _method_section(report),
        _accuracy_section(report.accuracy),
        gate_section(report),
        _start_section(report),
        _choice_section(report),
        _curve_section(report),
        _size_section(report),
        _codes_section(report),
        _stages_section(report),
        _placements_section(report),
        _unreadable_section(report),
        _tracking_section(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _method_section(report: ReportContent) -> str:
    centered = ", after each teacher's scores were centred" if report.centered else ""
    lines = [f"Method: `{report.method}`. The teachers' scores are combined by `{report.rule}`{centered}."]
    if report.overlap:
        shared = ", ".join(f"{name} ({', '.join(teachers)})" for name, teachers in report.overlap.items())
        lines.append(escape_markdown(f"Classes that several teachers know: {shared}."))
    extension = report.extension
    if extension is not None:
        saved = (
            f"This saved {extension.saved_seconds:.1f} s of training."
            if extension.reused
            else "All auto-encoders were trained again, so no time was saved."
        )
        lines.append(
            f"This run extends {format_code(extension.extended)}. Per tap it reused {extension.reused} "
            f"auto-encoder(s) and trained {extension.trained} in {extension.seconds:.1f} s. {saved}"
        )
    return "\n\n".join(lines)


def _accuracy_section(accuracy: Accuracy) -> str:
    agreement = (
        f"Agreement of student and ensemble on {accuracy.images:,} images: "
        f"{format_share(accuracy.agreement)} (share of the images for which both predict the same class)."
    )
    if not accuracy.labelled:
        return f"## Accuracy\n\n{NO_LABELS_NOTE}\n\n{agreement}"
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
    table = format_table(("accuracy on images of", "teachers", "student"), rows)
    notes = [f"Measured on {accuracy.labelled:,} labelled images out of {accuracy.images:,}."]
    if accuracy.unmatched:
        left_out = sum(accuracy.unmatched.values())
        notes.append(f"Left out are {left_out:,} images whose labels are no classes of the student.")
    if accuracy.per_teacher:
        notes.append("On the classes of one teacher, only the scores of these classes are compared.")
    return f"## Accuracy\n\n{table}\n\n{' '.join([*notes, agreement])}"


def _start_section(report: ReportContent) -> str:
    start = report.start
    if start is None:
        return ""
    rows = [
        ("before any step", format_share(start.accuracy.union), format_share(start.accuracy.agreement)),
        ("finished", format_share(report.accuracy.union), format_share(report.accuracy.agreement)),
    ]
    table = format_table(("student", "accuracy on all classes", "agreement with the ensemble"), rows)
    random = f" Random at its start were: {', '.join(start.random)}." if start.random else ""
    parts = [escape_markdown(f"The student started from: {start.source}.{random}"), table]
    if len(start.candidates) > 1:
        judged = [
            (f"{c.name} ({c.note})" if c.note else c.name, *_format_quality(c), f"{c.seconds:.1f}")
            for c in start.candidates
        ]
        images = start.candidates[0].images
        parts.append(f"Judged without labels, on {images:,} held-out training images:")
        parts.append(format_table(("start", *QUALITY_HEADER, "seconds"), judged))
    parts += [
        f"- {escape_markdown(f'{name} does not apply: {reason}', True)}"
        for name, reason in start.skipped.items()
    ]
    return "## Start\n\n" + "\n\n".join(parts)


def _choice_section(report: ReportContent) -> str:
    choice = report.choice
    if choice is None:
        return ""
    rows = [(name, *_format_quality(quality)) for name, quality in choice.qualities.items()]
    table = format_table(("student", *QUALITY_HEADER), rows)
    return f"## Which student is kept\n\n{describe_choice(choice.best, choice.qualities)}\n\n{table}"


QUALITY_HEADER = ("divergence from the teacher followed worst", "agreement", "divergence from the ensemble")


def _format_quality(quality: HeldOutQuality) -> tuple[str, ...]:
    return tuple(
        f"{value:.3f}" for value in (quality.worst_divergence, quality.agreement, quality.divergence)
    )


def _curve_section(report: ReportContent) -> str:
    if not report.curve:
        return ""
    # Every epoch is compared with the same ensemble, that of the finished run.
    ensemble = report.accuracy.ensemble
    rows = []
    for point in report.curve:
        union = point.accuracy.union
        ratio = f"{union / ensemble:.3f}" if union is not None and ensemble else "-"
        agreement = format_share(point.accuracy.agreement)
        rows.append((f"{point.images:,}", format_share(union), ratio, agreement))
    header = ("images processed", "accuracy, all classes", "accuracy / ensemble's accuracy", "agreement")
    return f"## After every epoch of joint learning\n\n{format_table(header, rows)}"


def _size_section(report: ReportContent) -> str:
    size = report.size
    # The student comes first and in bold, because its size is what the reader looks for.
    networks = {Markdown("**student**"): size.student, "all teachers": size.teachers, **size.per_teacher}
    rows = [
        (name, f"{one.parameters:,}", f"{one.macs / 1e6:,.2f}", f"{one.bytes / 1024**2:,.2f}")
        for name, one in networks.items()
    ]
    header = ("network", "parameters", "million multiply-accumulates per image", "MiB")
    note = ""
    if report.kept_adapters:
        kept = ", ".join(f"{tap} ({count:,} parameters)" for tap, count in report.kept_adapters.items())
        taps = escape_markdown(kept)
        note = f"\n\nAdapters that could not be folded are kept as layers of the student: {taps}."
    return f"## Size\n\n{format_table(header, rows)}{note}"


def _codes_section(report: ReportContent) -> str:
    if not report.codes:
        return ""
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
    note = (
        "Errors are shares of variance: of the stacked features for a code, of the code for a layer. "
        "The lowest possible error is that of the best linear code with as many channels."
    )
    return f"## Codes and layers\n\n{format_table((*header, 'layer computed by'), rows)}\n\n{note}"


def _stages_section(report: ReportContent) -> str:
    # report.json lists the stages as they were stored; a reader expects the order in which they ran.
    order = get_args(StageName)
    stages = sorted(report.stages.items(), key=lambda item: order.index(item[0]))
    rows = [(stage, f"{speed.seconds:,.1f}", f"{speed.images_per_s:,.0f}") for stage, speed in stages]
    ray = report.ray
    cluster = f"The Ray cluster had {ray.nodes} node(s), {ray.cpus:g} CPUs and {ray.gpus:g} GPUs."
    table = format_table(("stage", "seconds", "images per second"), rows)
    return f"## Stages\n\n{table}\n\n{cluster}"


def _placements_section(report: ReportContent) -> str:
    if not report.placements:
        return ""
    rows = [
        (p.teacher, p.node, p.device, ", ".join(map(str, p.gpus)) or "-", str(p.pid))
        for p in report.placements
    ]
    table = format_table(("teacher", "node", "device", "GPU ids", "process id"), rows)
    return f"## Teacher actors\n\n{table}"


def _unreadable_section(report: ReportContent) -> str:
    if not report.unreadable:
        return ""
    names = "\n".join(f"- {escape_markdown(name, starts_line=True)}" for name in report.unreadable)
    return f"## Skipped images: {len(report.unreadable)} could not be read\n\n{names}"


def _tracking_section(report: ReportContent) -> str:
    run = report.mlflow
    if run.tracking_uri is None:
        return "## Tracking\n\nThis run was not tracked."
    # A server has a page to open; a database needs MLflow's user interface to be started first.
    local = f"mlflow ui --backend-store-uri {shlex.quote(run.tracking_uri)}"
    browse = run.tracking_uri if run.tracking_uri.startswith("http") else local
    return f"## Tracking\n\nMLflow run `{run.run_id}`. To look at it:\n\n```\n{browse}\n```"
