"""Write the report of a run as Markdown, for people."""

from ka_ray.reports.gate_section import gate_section
from ka_ray.reports.plain_text import Markdown, escape_markdown
from ka_ray.reports.rows import (
    accuracy_table,
    candidates_table,
    choice_table,
    codes_table,
    curve_table,
    disputed_table,
    placements_table,
    size_table,
    stages_table,
    start_table,
    timeline_table,
)
from ka_ray.reports.sections import Accuracy, ReportContent
from ka_ray.reports.sentences import (
    CODES_NOTE,
    NO_LABELS_NOTE,
    describe_agreement,
    describe_cluster,
    describe_disputed,
    describe_kept_adapters,
    describe_measured_images,
    describe_method,
    describe_networks,
    describe_source,
    describe_speed,
    describe_timeline,
    find_browse_command,
)
from ka_ray.reports.tables import format_table
from ka_ray.reports.verdict import judge
from ka_ray.reports.warnings import describe_choice


def report_to_markdown(report: ReportContent) -> str:
    """Return the report of a run as Markdown. Sections for which the run has no content are left out."""
    sections = [
        "\n".join(f"> **Warning:** {escape_markdown(warning)}" for warning in report.warnings),
        f"# {report.name}: {describe_networks(report)}",
        f"**{judge(report.accuracy).sentence}**",
        *map(escape_markdown, describe_method(report)),
        _accuracy_section(report.accuracy),
        gate_section(report),
        _start_section(report),
        _choice_section(report),
        _curve_section(report),
        _disputed_section(report),
        _size_section(report),
        _codes_section(report),
        _time_section(report),
        _placements_section(report),
        _unreadable_section(report),
        _tracking_section(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _accuracy_section(accuracy: Accuracy) -> str:
    agreement = describe_agreement(accuracy)
    if not accuracy.labelled:
        return f"## Accuracy\n\n{NO_LABELS_NOTE}\n\n{agreement}"
    notes = " ".join([*describe_measured_images(accuracy), agreement])
    return f"## Accuracy\n\n{format_table(*accuracy_table(accuracy))}\n\n{notes}"


def _start_section(report: ReportContent) -> str:
    start = report.start
    if start is None:
        return ""
    parts = [escape_markdown(describe_source(start)), format_table(*start_table(start, report.accuracy))]
    if len(start.candidates) > 1:
        images = start.candidates[0].images
        parts.append(f"Judged without labels, on {images:,} held-out training images:")
        parts.append(format_table(*candidates_table(start)))
    parts += [
        f"- {escape_markdown(f'{name} does not apply: {reason}', True)}"
        for name, reason in start.skipped.items()
    ]
    return "## Start\n\n" + "\n\n".join(parts)


def _choice_section(report: ReportContent) -> str:
    choice = report.choice
    if choice is None:
        return ""
    table = format_table(*choice_table(choice))
    return f"## Which student is kept\n\n{describe_choice(choice.best, choice.qualities)}\n\n{table}"


def _curve_section(report: ReportContent) -> str:
    if not report.curve:
        return ""
    return f"## After every epoch of joint learning\n\n{format_table(*curve_table(report))}"


def _disputed_section(report: ReportContent) -> str:
    if not report.disputed:
        return ""
    table = format_table(*disputed_table(report))
    return f"## Where student and ensemble disagree\n\n{describe_disputed(report)}\n\n{table}"


def _size_section(report: ReportContent) -> str:
    header, ((student, *sizes), *others) = size_table(report)
    table = format_table(header, [(Markdown(f"**{student}**"), *sizes), *others])
    notes = filter(None, (describe_speed(report), escape_markdown(describe_kept_adapters(report))))
    return "\n\n".join(["## Size", table, *notes])


def _codes_section(report: ReportContent) -> str:
    if not report.codes:
        return ""
    return f"## Codes and layers\n\n{format_table(*codes_table(report))}\n\n{CODES_NOTE}"


def _time_section(report: ReportContent) -> str:
    steps = [format_table(*timeline_table(report)), describe_timeline(report)] if report.timeline else []
    stages = [format_table(*stages_table(report)), describe_cluster(report)]
    return "\n\n".join(["## Time", *steps, *stages])


def _placements_section(report: ReportContent) -> str:
    if not report.placements:
        return ""
    return f"## Teacher actors\n\n{format_table(*placements_table(report))}"


def _unreadable_section(report: ReportContent) -> str:
    if not report.unreadable:
        return ""
    names = "\n".join(f"- {escape_markdown(name, starts_line=True)}" for name in report.unreadable)
    return f"## Skipped images: {len(report.unreadable)} could not be read\n\n{names}"


def _tracking_section(report: ReportContent) -> str:
    browse = find_browse_command(report.mlflow)
    if browse is None:
        return "## Tracking\n\nThis run was not tracked."
    return f"## Tracking\n\nMLflow run `{report.mlflow.run_id}`. To look at it:\n\n```\n{browse}\n```"
