"""What a tracker shows of a run: a description of it in short, and the model card of its student."""

from collections.abc import Iterator

from ka_ray.reports.plain_text import escape_markdown, format_code
from ka_ray.reports.rows import accuracy_table, size_table
from ka_ray.reports.sections import ReportContent
from ka_ray.reports.sentences import (
    NO_LABELS_NOTE,
    describe_agreement,
    describe_method,
    describe_networks,
    describe_source,
    describe_used_gate,
)
from ka_ray.reports.tables import format_table
from ka_ray.reports.verdict import judge

SHOWN_CLASSES = 200
"""Number of classes that a card lists; the model has all of them in its metadata."""

LIMITS = (
    "The student knows only the classes above, and gives every image one of them. Its probabilities are "
    "softmax values, which nobody has calibrated. It was made without labels: it learned what its teachers "
    "predict, their mistakes included. Accuracies hold for images like those that they were measured on."
)
"""What everybody who uses a student should know."""


def describe_run(report: ReportContent) -> str:
    """Return the verdict on a run and its main tables as Markdown, for the page of the run."""
    return "\n\n".join(
        [
            f"**{judge(report.accuracy).sentence}**",
            *(f"> **Warning:** {escape_markdown(warning)}" for warning in report.warnings),
            _describe_accuracy(report),
            format_table(*size_table(report)),
            *_describe_making(report),
        ]
    )


def write_card(report: ReportContent, pixels: str) -> str:
    """Return the model card of a student as Markdown.

    Args:
        report: The report of its run.
        pixels: How its images are preprocessed, in words.
    """
    names = [format_code(name) for name in report.classes[:SHOWN_CLASSES]]
    more = f" and {len(report.classes) - SHOWN_CLASSES} more" if len(report.classes) > SHOWN_CLASSES else ""
    sections = {
        f"{report.name}: {describe_networks(report)}": f"**{judge(report.accuracy).sentence}**",
        "Classes": ", ".join(names) + more,
        "Images": escape_markdown(pixels),
        "Accuracy": _describe_accuracy(report),
        "Size": format_table(*size_table(report)),
        "How it was made": "\n\n".join(_describe_making(report)),
        "Limits": LIMITS,
    }
    parts = [
        f"{'#' if not number else '##'} {title}\n\n{text}"
        for number, (title, text) in enumerate(sections.items())
    ]
    return "\n\n".join(parts) + "\n"


def _describe_accuracy(report: ReportContent) -> str:
    agreement = describe_agreement(report.accuracy)
    if not report.accuracy.labelled:
        return f"{NO_LABELS_NOTE} {agreement}"
    images = f"On {report.accuracy.labelled:,} labelled images. {agreement}"
    return f"{format_table(*accuracy_table(report.accuracy))}\n\n{images}"


def _describe_making(report: ReportContent) -> Iterator[str]:
    """Yield how the student was made, one paragraph each."""
    yield from map(escape_markdown, describe_method(report))
    if report.start is not None:
        yield escape_markdown(describe_source(report.start))
    if report.gate is not None:
        yield escape_markdown(describe_used_gate(report.gate.used))
