"""The result of `ka-ray compare`: one row per method, with mean and standard deviation over the seeds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from ka_ray.metrics import Counts, compute_accuracies
from ka_ray.reports.choices import ReportSection
from ka_ray.reports.plain_text import escape_markdown
from ka_ray.reports.tables import format_table
from ka_ray.storage.files import write_json, write_text

ENSEMBLE = "ensemble"
"""Label of the row that shows the teachers themselves, all of them run on every image."""


class SeedValues(ReportSection):
    """The values of one measure, one per seed."""

    values: list[float | None]
    """The measured values, in the order of the seeds; None where nothing was measured."""

    @property
    def mean(self) -> float | None:
        """Mean of the measured values; None if there are none."""
        known = self._known()
        return statistics.fmean(known) if known else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the measured values; None for fewer than two."""
        known = self._known()
        return statistics.stdev(known) if len(known) > 1 else None

    def _known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    def format(self, decimals: int = 3) -> str:
        """Return mean and standard deviation as text, or "-" if nothing was measured.

        Args:
            decimals: Number of decimal places. A zero before the decimal point is left out.

        Example:
            >>> SeedValues(values=[0.5, 0.75]).format(), SeedValues(values=[0.5]).format()
            ('.625 ± .177', '.500')
            >>> SeedValues(values=[None]).format()
            '-'
        """
        if self.mean is None:
            return "-"
        numbers = [self.mean, *([] if self.deviation is None else [self.deviation])]
        # The zero before the decimal point is left out, because the table is already wide.
        return " ± ".join(f"{value:.{decimals}f}".replace("0.", ".", int(value < 1)) for value in numbers)


class ComparisonRow(ReportSection):
    """One method over all seeds, or the ensemble of the teachers."""

    label: str
    """Name of the method with the keys that are varied, such as ``direct scores.rule=mean``."""
    union: SeedValues
    """Accuracy over the classes of all teachers, in [0, 1]."""
    per_teacher: dict[str, SeedValues]
    """Name of a teacher -> accuracy on the images of its classes, predicting only these, in [0, 1]."""
    agreement: SeedValues
    """Share of the images for which student and ensemble predict the same class."""
    seconds: SeedValues
    """Duration of the student's training stages, in seconds, without ``Comparison.shared_seconds``."""
    images: int
    """Number of images that the student processed during training, counting repeats; 0 for an ensemble."""
    parameters: int
    """Number of parameters of the student, or of all teachers together for an ensemble."""


class Comparison(ReportSection):
    """The rows of all methods and of the ensembles."""

    name: str
    """Name of the run, from the config."""
    seeds: list[int]
    """Seeds with which every method was run."""
    rows: list[ComparisonRow]
    """First the ensembles, for each rule of combining the teachers' scores; then one row per method."""
    shared_seconds: float
    """Time to read the images and to run the teachers, in seconds. It is spent once for all methods."""
    warnings: list[str] = Field(default_factory=list)
    """What the accuracies cannot be trusted for, such as evaluation images that were learned from, or which
    images they leave out."""

    def row(self, label: str) -> ComparisonRow:
        """Return the row with a label.

        Raises:
            KeyError: No row has this label.
        """
        return {row.label: row for row in self.rows}[label]

    def save(self, folder: Path) -> None:
        """Write ``compare.json`` and ``compare.md`` into a folder."""
        # compare.json comes last: where it exists, both files are complete.
        write_text(folder / "compare.md", self.to_markdown())
        write_json(folder / "compare.json", self.model_dump(mode="json"))

    def to_markdown(self) -> str:
        """Return the table as Markdown, for people."""
        # All rows have the same teachers, so those of the first one make the columns.
        teachers = list(self.rows[0].per_teacher)
        header = (
            *("method", "accuracy, all classes", *(f"accuracy, classes of {name}" for name in teachers)),
            *("agreement with the ensemble", "seconds", "images processed", "parameters"),
        )
        rows = [
            (
                row.label,
                row.union.format(),
                *(row.per_teacher[name].format() for name in teachers),
                row.agreement.format(),
                row.seconds.format(decimals=0),
                f"{row.images:,}" if row.images else "-",
                f"{row.parameters:,}",
            )
            for row in self.rows
        ]
        spread = "; values are mean ± standard deviation" if len(self.seeds) > 1 else ""
        seeds = f"Seeds: {', '.join(map(str, self.seeds))}{spread}."
        shared = f"Reading the images and running the teachers took {self.shared_seconds:.0f} s once."
        lines = "".join(f"> **Warning:** {escape_markdown(warning)}\n\n" for warning in self.warnings)
        title = f"{lines}# {escape_markdown(self.name)}: comparison of methods"
        return f"{title}\n\n{format_table(header, rows)}\n\n{seeds} {shared}\n"


def make_row(
    label: str,
    counts: Sequence[Counts],
    teachers: Sequence[str],
    seconds: Sequence[float | None],
    images: int,
    parameters: int,
) -> ComparisonRow:
    """Make the row of a method from the counts of its students.

    Args:
        label: Name of the method, unique among the rows.
        counts: Counts of the student of each seed.
        teachers: Names of the teachers, in the order of the counts.
        seconds: Time that the stages of the student of each seed took, in seconds; None if unknown.
        images: Number of images that one student processed during training, counting repeats.
        parameters: Number of parameters of one student.
    """
    measured = [compute_accuracies(one, teachers) for one in counts]
    per_teacher = {
        name: SeedValues(values=[one["per_teacher"][name]["student"] for one in measured])
        for name in teachers
    }
    return ComparisonRow(
        label=label,
        union=SeedValues(values=[one["union"] for one in measured]),
        per_teacher=per_teacher,
        agreement=SeedValues(values=[one["agreement"] for one in measured]),
        seconds=SeedValues(values=list(seconds)),
        images=images,
        parameters=parameters,
    )


def make_ensemble_rows(
    counts_by_rule: Mapping[str, Counts],
    teachers: Sequence[str],
    parameters: int,
    gated: Mapping[str, Counts] | None = None,
) -> list[ComparisonRow]:
    """Make the rows of the ensembles: one per rule, and others for scores over views and for gates.

    Args:
        counts_by_rule: Rule by which the teachers' scores are combined -> counts of this ensemble.
        teachers: Names of the teachers, in the order of the counts.
        parameters: Number of parameters of all teachers together.
        gated: Name of each gate -> counts of a student that learned from its scores.
    """
    rows = []
    unmeasured = SeedValues(values=[None])
    for rule, counts in counts_by_rule.items():
        measured = compute_accuracies(counts, teachers)
        row = ComparisonRow(
            # If there is only one rule, the label does not need its name.
            label=ENSEMBLE if len(counts_by_rule) == 1 else f"{ENSEMBLE} ({rule})",
            union=SeedValues(values=[measured["ensemble"]]),
            per_teacher={n: SeedValues(values=[measured["per_teacher"][n]["teacher"]]) for n in teachers},
            # An ensemble agrees with itself, and it needs no training.
            agreement=unmeasured,
            seconds=unmeasured,
            images=0,
            parameters=parameters,
        )
        rows.append(row)
        if measured["ensemble_over_views"] is not None:
            changes = {
                "label": f"{row.label}, over views",
                "union": SeedValues(values=[measured["ensemble_over_views"]]),
                # Only the amalgamated scores are averaged over views, not those of each teacher.
                "per_teacher": dict.fromkeys(teachers, unmeasured),
            }
            rows.append(row.model_copy(update=changes))
    return [*rows, *(_make_gated_row(rows[0], gate, counts) for gate, counts in (gated or {}).items())]


def _make_gated_row(ungated: ComparisonRow, gate: str, counts: Counts) -> ComparisonRow:
    """Make the row of an ensemble with a gate, which changes none of the teachers' own accuracies."""
    accuracy = compute_accuracies(counts, list(ungated.per_teacher))["gate"]["ensemble"]
    changes = {"label": f"{ENSEMBLE}, gate {gate}", "union": SeedValues(values=[accuracy])}
    return ungated.model_copy(update=changes)
