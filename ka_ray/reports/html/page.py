"""The report of a run as one HTML page, and as a short form for notebooks."""

from collections.abc import Mapping
from importlib.resources import files

from ka_ray.reports.html import sections
from ka_ray.reports.html.disputed import disputed_section
from ka_ray.reports.html.elements import element, escape_attribute, paragraph, table
from ka_ray.reports.html.time import time_section
from ka_ray.reports.rows import accuracy_table, size_table
from ka_ray.reports.sections import ReportContent
from ka_ray.reports.sentences import describe_agreement
from ka_ray.reports.verdict import judge

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing but what is in it, and no script at all."""


def report_to_html(report: ReportContent, figures: Mapping[str, bytes]) -> str:
    """Return the report of a run as a page that needs no other file.

    Args:
        report: The report. Names in it are shown as they are; none of them is markup.
        figures: Name of a figure, such as ``losses`` -> the content of its PNG file.
    """
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape_attribute(POLICY)}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape_attribute(report.name)}</title>"
        f"<style>\n{style}</style>"
    )
    body = [
        sections.head_section(report),
        sections.accuracy_section(report),
        sections.gate_section(report),
        sections.start_section(report),
        sections.choice_section(report),
        sections.curve_section(report),
        disputed_section(report),
        sections.figures_section(figures),
        sections.size_section(report),
        time_section(report),
        sections.codes_section(report),
        sections.plan_section(report),
        sections.repeat_section(report),
        sections.unreadable_section(report),
    ]
    main = element("main", *(f"\n{part}" for part in body if part))
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>{main}\n</body>\n</html>\n'


def report_to_notebook(report: ReportContent) -> str:
    """Return the verdict, the warnings, the accuracies and the sizes, without figures or styles.

    Args:
        report: The report.
    """
    accuracy = report.accuracy
    measured = table(accuracy_table(accuracy)) if accuracy.labelled else ""
    return element(
        "div",
        element("p", element("strong", escape_attribute(judge(accuracy).sentence))),
        sections.warning_list(report),
        measured,
        paragraph(describe_agreement(accuracy)),
        table(size_table(report)),
    )
