"""Where the time of a run went: the steps of its command as bars on one scale, and the stages as a table."""

from ka_ray.reports.html.elements import bar, details, element, escape, paragraph, section, table
from ka_ray.reports.rows import placements_table, shown_steps, stages_table
from ka_ray.reports.sections import ReportContent
from ka_ray.reports.sentences import describe_cluster, describe_timeline


def time_section(report: ReportContent) -> str:
    """Return the steps of the command, the stages, and where the actors of the teachers ran."""
    steps = shown_steps(report)
    end = max((step.began + step.seconds for step in steps), default=0.0)
    rows = [
        element(
            "li",
            element("span", escape(step.step), class_="name"),
            element("span", bar(step.began / end, step.seconds / end, "stage"), class_="track"),
            element("span", escape(f"{step.seconds:,.1f} s"), class_="time"),
        )
        for step in steps
    ]
    actors = table(placements_table(report)) if report.placements else ""
    return section(
        "Time",
        element("ol", *rows, class_="timeline") if rows else "",
        paragraph(describe_timeline(report)),
        table(stages_table(report)),
        paragraph(describe_cluster(report)),
        actors and details("Actors of the teachers", actors),
    )
