"""The section of a report that says how to repeat the run."""

from ka_ray.reports.choices import ReportSection


class RunOrigin(ReportSection):
    """What it takes to repeat a run."""

    command: str
    """The command that repeats the run with the config in a file of its name."""
    config: str
    """The config with all defaults, as YAML."""
    versions: dict[str, str]
    """Program or library -> its version."""
    commit: str | None
    """Commit of the checkout of ka_ray, with ``-dirty`` behind it if files had been changed; None if ka_ray
    was not run from one."""
