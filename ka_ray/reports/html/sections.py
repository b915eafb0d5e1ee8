"""The sections of ``report.html``. Each function returns nothing if the run has no content for it."""

from collections.abc import Mapping

from ka_ray.reports.html.elements import (
    details,
    element,
    escape,
    figure,
    paragraph,
    section,
    sentence,
    table,
    unordered_list,
)
from ka_ray.reports.rows import (
    accuracy_table,
    candidates_table,
    choice_table,
    codes_table,
    curve_table,
    gate_table,
    size_table,
    start_table,
)
from ka_ray.reports.sections import ReportContent
from ka_ray.reports.sentences import (
    CODES_NOTE,
    GATE_TABLE_NOTE,
    NO_LABELS_NOTE,
    describe_agreement,
    describe_gate,
    describe_kept_adapters,
    describe_measured_images,
    describe_method,
    describe_networks,
    describe_source,
    describe_speed,
    describe_used_gate,
    find_browse_command,
)
from ka_ray.reports.verdict import judge
from ka_ray.reports.warnings import describe_choice

FIGURES = {
    "losses": ("Losses", "Training loss of each stage over the images that it processed."),
    "epoch_curve": ("Joint learning", "The student after every epoch of joint learning."),
    "reconstruction": ("Codes", "Error of every code, beside the lowest one that is possible."),
    "confusion": (
        "Confusion matrix",
        "Which class the student predicts for the images of each true class. Lines separate the classes of "
        "the teachers.",
    ),
}
"""Name of a figure -> its title, and what it shows. The accuracies are drawn in their table."""


def head_section(report: ReportContent) -> str:
    """Return the title, the verdict, and the warnings."""
    verdict = judge(report.accuracy)
    number = ""
    if verdict.number:
        unit = element("span", escape(verdict.unit), class_="unit")
        number = element("p", element("strong", escape(verdict.number)), unit, class_="number")
    claim = paragraph(verdict.sentence, class_="sentence")
    return element(
        "header",
        element("h1", escape(report.name)),
        paragraph(describe_networks(report), class_="networks"),
        element("div", number, claim, class_=f"verdict {verdict.grade}"),
        warning_list(report),
    )


def warning_list(report: ReportContent) -> str:
    """Return the warnings."""
    return unordered_list((f"Warning: {warning}" for warning in report.warnings), class_="warnings")


def accuracy_section(report: ReportContent) -> str:
    """Return the accuracies of teachers and student; without labels, their agreement."""
    accuracy = report.accuracy
    agreement = describe_agreement(accuracy)
    if not accuracy.labelled:
        return section("Accuracy", paragraph(NO_LABELS_NOTE), paragraph(agreement))
    notes = " ".join([*describe_measured_images(accuracy), agreement])
    return section("Accuracy", table(accuracy_table(accuracy), shares=(1, 2)), paragraph(notes))


def gate_section(report: ReportContent) -> str:
    """Return which gates were tried, and which one was used."""
    choice = report.gate
    if choice is None:
        return ""
    worth = gate_table(report.accuracy)
    return section(
        "Whose image is it?",
        paragraph(describe_used_gate(choice.used)),
        unordered_list(describe_gate(name, gate) for name, gate in choice.gates.items()),
        *((paragraph(GATE_TABLE_NOTE), table(worth, shares=(1, 2))) if worth else ()),
    )


def start_section(report: ReportContent) -> str:
    """Return which starts were tried, and the one that was chosen."""
    start = report.start
    if start is None:
        return ""
    judged = ""
    if len(start.candidates) > 1:
        images = start.candidates[0].images
        judged = paragraph(f"Judged without labels, on {images:,} held-out training images:")
        names = [candidate.name for candidate in start.candidates]
        kept = names.index(start.source) if start.source in names else None
        judged += table(candidates_table(start), kept=kept)
    return section(
        "Start",
        paragraph(describe_source(start)),
        table(start_table(start, report.accuracy)),
        judged,
        unordered_list(f"{name} does not apply: {reason}" for name, reason in start.skipped.items()),
    )


def choice_section(report: ReportContent) -> str:
    """Return what joint learning kept."""
    choice = report.choice
    if choice is None:
        return ""
    said = paragraph(describe_choice(choice.best, choice.qualities))
    kept = list(choice.qualities).index(choice.best)
    return section("Which student is kept", said, table(choice_table(choice), kept=kept))


def curve_section(report: ReportContent) -> str:
    """Return the student after every epoch of joint learning."""
    return section("After every epoch of joint learning", table(curve_table(report)) if report.curve else "")


def figures_section(figures: Mapping[str, bytes]) -> str:
    """Return the figures of a run.

    Args:
        figures: Name of a figure -> the content of its PNG file.
    """
    shown = [figure(figures[name], *texts) for name, texts in FIGURES.items() if name in figures]
    return section("Figures", *shown)


def size_section(report: ReportContent) -> str:
    """Return the sizes of the student and its teachers."""
    student, teachers = report.size.student, report.size.teachers
    ratios = [
        f"{100 * getattr(student, key) / getattr(teachers, key):.1f} % of the {name}"
        for key, name in (("parameters", "parameters"), ("macs", "multiply-accumulates"), ("bytes", "bytes"))
        if getattr(teachers, key)
    ]
    share = f"The student has {', '.join(ratios)} of all teachers together." if ratios else ""
    return section(
        "Size",
        table(size_table(report), kept=0),
        paragraph(share),
        paragraph(describe_speed(report)),
        paragraph(describe_kept_adapters(report)),
    )


def codes_section(report: ReportContent) -> str:
    """Return the errors of codes and layers."""
    return section(
        "Codes and layers", *((table(codes_table(report)), paragraph(CODES_NOTE)) if report.codes else ())
    )


def plan_section(report: ReportContent) -> str:
    """Return how the student was made, and the classes of each teacher."""
    classes = [
        details(f"{teacher}: {len(names):,} classes", paragraph(", ".join(names)))
        for teacher, names in report.teacher_classes.items()
    ]
    return section("Plan", *map(paragraph, describe_method(report)), *classes)


def repeat_section(report: ReportContent) -> str:
    """Return what it takes to repeat the run, and where it is tracked."""
    origin, parts = report.origin, []
    if origin is not None:
        versions = ", ".join(f"{name} {number}" for name, number in origin.versions.items())
        parts += [
            paragraph(f"Save the config below as {report.name}.yaml, and run:"),
            element("pre", escape(origin.command)),
            details("Config, with all defaults", element("pre", escape(origin.config))),
            paragraph(f"Versions: {versions}."),
            paragraph(f"Commit of ka_ray: `{origin.commit}`." if origin.commit else ""),
        ]
    browse = find_browse_command(report.mlflow)
    if browse is None:
        parts.append(paragraph("This run was not tracked."))
    else:
        parts.append(element("p", sentence(f"MLflow run `{report.mlflow.run_id}`. To look at it:")))
        parts.append(element("pre", escape(browse)))
    return section("How to repeat it", *parts)


def unreadable_section(report: ReportContent) -> str:
    """Return the images that were skipped."""
    title = f"Skipped images: {len(report.unreadable)} could not be read"
    return section(title, unordered_list(report.unreadable))
