"""The report of a run: ``report.json`` for programs, ``report.html`` and ``report.md`` for people."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ka_ray.reports.html.page import report_to_html, report_to_notebook
from ka_ray.reports.markdown import report_to_markdown
from ka_ray.reports.sections import ReportContent
from ka_ray.reports.summaries import read_model
from ka_ray.storage.files import read_bytes, write_json, write_text
from ka_ray.storage.uris import to_path

REPORT_PAGE = "report.html"
"""The file in an output folder with the report as one page, figures included."""


class Report(ReportContent):
    """The report of a run. :class:`ka_ray.reports.sections.ReportContent` describes its fields."""

    def save(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md`` into a folder, each in one atomic step."""
        # report.json comes last: where it exists, both files are complete.
        write_text(folder / "report.md", self.to_markdown())
        write_json(folder / "report.json", self.model_dump(mode="json"))

    def save_page(self, folder: Path, figures: Iterable[Path] = ()) -> Path:
        """Write ``report.html`` into a folder, in one atomic step. It needs no other file.

        Args:
            folder: The folder.
            figures: PNG files, which are embedded; those that no section shows are left out.

        Returns:
            The path of the page.
        """
        page = folder / REPORT_PAGE
        write_text(page, self.to_html({figure.stem: read_bytes(figure) for figure in figures}))
        return page

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

    def to_html(self, figures: Mapping[str, bytes] | None = None) -> str:
        """Return the report as one HTML page, for people.

        Args:
            figures: Name of a figure, such as ``losses`` -> the content of its PNG file; None for no figures.
        """
        return report_to_html(self, figures or {})

    def _repr_html_(self) -> str:
        """Return the verdict and the main tables, for notebooks."""
        return report_to_notebook(self)


REPORT_SCHEMA: dict[str, Any] = Report.model_json_schema()
"""The JSON schema of ``report.json``, with a description of every key."""
