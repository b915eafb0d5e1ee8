"""The section of ``report.md`` that says whose images the gates found, and which gate was used."""

from ka_ray.reports.plain_text import escape_markdown
from ka_ray.reports.rows import gate_table
from ka_ray.reports.sections import ReportContent
from ka_ray.reports.sentences import GATE_TABLE_NOTE, describe_gate, describe_used_gate
from ka_ray.reports.tables import format_table


def gate_section(report: ReportContent) -> str:
    """Return the section; empty if no gate was learned.

    Args:
        report: The report of a run.
    """
    choice = report.gate
    if choice is None:
        return ""
    parts = [describe_used_gate(choice.used)]
    parts += [escape_markdown(describe_gate(name, gate)) for name, gate in choice.gates.items()]
    table = gate_table(report.accuracy)
    if table is not None:
        parts += [GATE_TABLE_NOTE, format_table(*table)]
    return "## Whose image is it?\n\n" + "\n\n".join(parts)
