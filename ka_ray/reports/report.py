"""The report of a run: ``report.json`` for programs, and the same as ``report.md`` for people."""

from pathlib import Path
from typing import Any

from ka_ray.reports.markdown import report_to_markdown
from ka_ray.reports.sections import ReportContent
from ka_ray.reports.summaries import read_model
from ka_ray.storage.files import write_json, write_text
from ka_ray.storage.uris import to_path


class Report(ReportContent):
    """The report of a run. :class:`ka_ray.reports.sections.ReportContent` describes its fields."""

    def save(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md`` into a folder, each in one atomic step."""
        # report.json comes last: where it exists, both files are complete.
        write_text(folder / "report.md", self.to_markdown())
        write_json(folder / "report.json", self.model_dump(mode="json"))

    @staticmethod
    def load(folder: str | Path) -> "Report":
        """Read ``report.json`` from the output folder of a finished run, which may be a URI.

        Raises:
            FileNotFoundError: The folder holds no report.
            InputError: The report is damaged, or was written by another version of ka_ray.
        """
        return read_model(Report, to_path(folder) / "report.json")

    def to_markdown(self) -> str:
        """Return the report as Markdown, for people."""
        return report_to_markdown(self)


REPORT_SCHEMA: dict[str, Any] = Report.model_json_schema()
"""The JSON schema of ``report.json``, with a description of every key."""
