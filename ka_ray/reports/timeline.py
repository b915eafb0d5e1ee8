"""Where the time of a command went, as a section of ``report.json``."""

from ka_ray.reports.choices import ReportSection


class TimelineStep(ReportSection):
    """One of the steps of a command, which follow each other."""

    step: str
    """What was done, such as ``starting Ray``."""
    began: float
    """When it began, in seconds since the command had begun to plan the run."""
    seconds: float
    """Its duration, in seconds."""
