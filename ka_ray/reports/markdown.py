"""The report of a run for people, as Markdown."""

import shlex
from collections.abc import Iterable, Sequence

from ka_ray.reports.sections import Accuracy, ReportContent

NO_LABELS = (
    "The images have no labels, so agreement with the ensemble alone is reported: accuracy needs labels."
)
"""What the readable report says then."""

STAGE_ORDER = ("teach", "extract", "codes", "layers", "joint", "evaluate")


def write_markdown(report: ReportContent) -> str:
    """Write a report for people."""
    num_teachers = len(report.accuracy.per_teacher)
    sections = [
        f"# {report.name}: {len(report.classes)} classes, {num_teachers} teachers, one student",
        _method_section(report),
        _accuracy_section(report.accuracy),
        _curve_section(report),
        _size_section(report),
        _codes_section(report),
        _stages_section(report),
        _places_section(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _method_section(report: ReportContent) -> str:
    centered = ", each teacher's centred before" if report.centered else ""
    lines = [
        f"Made by `{report.method}`; the teachers' scores are put together by `{report.rule}`{centered}."
    ]
    if report.overlap:
        shared = ", ".join(f"{name} ({', '.join(teachers)})" for name, teachers in report.overlap.items())
        lines.append(f"Classes that several teachers know: {shared}.")
    extension = report.extension
    if extension is not None:
        saved = (
            f"{extension.saved_seconds:.1f} s of training saved"
            if extension.reused
            else "all auto-encoders were trained again, nothing was saved"
        )
        lines.append(
            f"Extends `{extension.extended}`: {extension.reused} auto-encoder(s) a tap used again, "
            f"{extension.trained} trained in {extension.seconds:.1f} s; {saved}."
        )
    return "\n\n".join(lines)


def _curve_section(report: ReportContent) -> str:
    if not report.curve:
        return ""
    ensemble = report.accuracy.ensemble
    rows = []
    for point in report.curve:
        union = point.accuracy.union
        ratio = f"{union / ensemble:.3f}" if union is not None and ensemble else "-"
        rows.append((f"{point.images:,}", _share(union), ratio, _share(point.accuracy.agreement)))
    header = ("images of joint learning", "union", "union / ensemble", "agreement")
    return f"## After every epoch\n\n{table(header, rows)}"


def _accuracy_section(accuracy: Accuracy) -> str:
    agreement = (
        f"Agreement of student and ensemble on {accuracy.images:,} images: {_share(accuracy.agreement)}."
    )
    if not accuracy.labelled:
        return f"## Accuracy\n\n{NO_LABELS}\n\n{agreement}"
    rows = [("all classes (teachers: their ensemble)", _share(accuracy.ensemble), _share(accuracy.union))]
    if accuracy.ensemble_over_views is not None:
        rows.append(("all classes (teachers: averaged over views)", _share(accuracy.ensemble_over_views), ""))
    for name, pair in accuracy.per_teacher.items():
        rows.append((f"classes of {name}, among themselves", _share(pair.teacher), _share(pair.student)))
    judged = table(("on images of", "teachers", "student"), rows)
    labelled = f"Measured on the {accuracy.labelled:,} labelled ones of {accuracy.images:,} images."
    return f"## Accuracy\n\n{judged}\n\n{labelled} {agreement}"


def _size_section(report: ReportContent) -> str:
    size = report.size
    networks = {"**student**": size.student, "all teachers": size.teachers, **size.per_teacher}
    rows = [
        (name, f"{one.parameters:,}", f"{one.macs / 1e6:,.2f}", f"{one.bytes / 1024**2:,.2f}")
        for name, one in networks.items()
    ]
    header = ("network", "parameters", "million multiply-accumulates an image", "MiB")
    kept = report.kept_adapters
    note = ""
    if kept:
        taps = ", ".join(f"{tap} ({parameters:,})" for tap, parameters in kept.items())
        note = f"\n\nThe student keeps adapters that could not be folded, at (parameters): {taps}."
    return f"## Size\n\n{table(header, rows)}{note}"


def _codes_section(report: ReportContent) -> str:
    if not report.codes:
        return ""
    cells = {tap: ["-"] * 5 for tap in (*report.codes, *report.layers)}
    for tap, code in report.codes.items():
        errors = f"{code.relative_error:.3g}", f"{code.optimal_relative_error:.3g}"
        cells[tap][:3] = f"{code.width} of {code.stacked}", *errors
    for tap, layer in report.layers.items():
        found_by = "gradient steps" if layer.ridge is None else f"least squares, ridge {layer.ridge:g}"
        cells[tap][3:] = f"{layer.relative_error:.3g}", found_by
    rows = [(tap, *row) for tap, row in cells.items()]
    header = (
        "tap",
        "channels kept",
        "lost by the code",
        "least possible",
        "missed by the layer",
        "layer found by",
    )
    note = "Errors are shares of the variance, of the stacked features (codes) and of the code (layers)."
    return f"## Codes and layers\n\n{table(header, rows)}\n\n{note}"


def _stages_section(report: ReportContent) -> str:
    stages = sorted(report.stages.items(), key=lambda item: STAGE_ORDER.index(item[0]))
    rows = [(stage, f"{speed.seconds:,.1f}", f"{speed.images_per_s:,.0f}") for stage, speed in stages]
    ray = report.ray
    where = f"Ray had {ray.nodes} node(s), {ray.cpus:g} CPUs and {ray.gpus:g} GPUs."
    return f"## Stages\n\n{table(('stage', 'seconds', 'images/s'), rows)}\n\n{where}"


def _places_section(report: ReportContent) -> str:
    run, parts = report.mlflow, []
    if report.placements:
        rows = [
            (p.teacher, p.node, p.device, ", ".join(map(str, p.gpus)) or "-", str(p.pid))
            for p in report.placements
        ]
        parts.append(f"## Teacher actors\n\n{table(('teacher', 'node', 'device', 'GPUs', 'process'), rows)}")
    if report.unreadable:
        names = "\n".join(f"- {name}" for name in report.unreadable)
        parts.append(f"## Skipped: {len(report.unreadable)} unreadable images\n\n{names}")
    if run.tracking_uri is None:
        parts.append("## Tracking\n\nNot tracked.")
    else:
        local = f"mlflow ui --backend-store-uri {shlex.quote(run.tracking_uri)}"
        browse = run.tracking_uri if run.tracking_uri.startswith("http") else local
        parts.append(f"## Tracking\n\nMLflow run `{run.run_id}`; to see it:\n\n```\n{browse}\n```")
    return "\n\n".join(parts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rule, *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
