"""What `ka-ray compare` found: one row a method, mean and spread over the seeds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ka_ray.metrics import Counts, compute_accuracies
from ka_ray.reports.markdown import table
from ka_ray.reports.sections import ReportSection
from ka_ray.storage.files import write_json, write_text

ENSEMBLE = "ensemble"
"""The row of the teachers themselves, all of them run."""


class Spread(ReportSection):
    """One figure over the seeds; None where nothing was measured."""

    values: list[float | None]

    @property
    def mean(self) -> float | None:
        """The mean of what was measured."""
        known = self._known()
        return statistics.fmean(known) if known else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None for fewer than two values."""
        known = self._known()
        return statistics.stdev(known) if len(known) > 1 else None

    def _known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    def text(self, decimals: int = 3) -> str:
        """Write mean and spread.

        Example:
            >>> Spread(values=[0.5, 0.75]).text(), Spread(values=[0.5]).text(), Spread(values=[None]).text()
            ('.625 ± .177', '.500', '-')
        """
        if self.mean is None:
            return "-"
        known = [self.mean, *([] if self.deviation is None else [self.deviation])]
        return " ± ".join(f"{value:.{decimals}f}".replace("0.", ".", int(value < 1)) for value in known)


class Row(ReportSection):
    """One way to make the student, over all seeds.

    ``seconds`` is what its stages took, ``images`` what its student saw, ``parameters`` its size.
    """

    label: str
    union: Spread
    per_teacher: dict[str, Spread]
    agreement: Spread
    seconds: Spread
    images: int
    parameters: int


class Comparison(ReportSection):
    """All rows; the first are the teachers' ensembles, one for every rule that was compared."""

    name: str
    seeds: list[int]
    rows: list[Row]
    shared_seconds: float
    """What preparing the images and the teachers' features and scores took, once for all."""

    def row(self, label: str) -> Row:
        """Find a row by its label."""
        return next(row for row in self.rows if row.label == label)

    def save(self, folder: Path) -> None:
        """Write ``compare.json`` and ``compare.md``."""
        write_text(folder / "compare.md", self.to_markdown())
        write_json(folder / "compare.json", self.model_dump(mode="json"))

    def to_markdown(self) -> str:
        """Write the table for people."""
        teachers = list(self.rows[0].per_teacher)
        header = ("method", "union", *(f"classes of {name}" for name in teachers), "agreement")
        rows = [
            (
                row.label,
                row.union.text(),
                *(row.per_teacher[name].text() for name in teachers),
                row.agreement.text(),
                row.seconds.text(decimals=0),
                f"{row.images:,}" if row.images else "-",
                f"{row.parameters:,}",
            )
            for row in self.rows
        ]
        header = (*header, "seconds", "images seen", "parameters")
        many = len(self.seeds) > 1
        seeds = f"Seeds {', '.join(map(str, self.seeds))}" + ("; mean ± standard deviation." if many else ".")
        shared = (
            f"Reading the images and running the teachers took {self.shared_seconds:.0f} s, once for all."
        )
        return f"# {self.name}: methods compared\n\n{table(header, rows)}\n\n{seeds} {shared}\n"


def make_row(
    label: str,
    counts: Sequence[Counts],
    teachers: Sequence[str],
    seconds: Sequence[float | None],
    images: int,
    parameters: int,
) -> Row:
    """Make a method's row from what each of its seeds counted."""
    found = [compute_accuracies(one, teachers) for one in counts]
    return Row(
        label=label,
        union=Spread(values=[one["union"] for one in found]),
        per_teacher={
            name: Spread(values=[one["per_teacher"][name]["student"] for one in found]) for name in teachers
        },
        agreement=Spread(values=[one["agreement"] for one in found]),
        seconds=Spread(values=list(seconds)),
        images=images,
        parameters=parameters,
    )


def make_ensemble_rows(by_way: Mapping[str, Counts], teachers: Sequence[str], parameters: int) -> list[Row]:
    """Make the teachers' own rows: how their scores are put together -> what was counted so."""
    rows = []
    for way, counts in by_way.items():
        found = compute_accuracies(counts, teachers)
        rows.append(
            Row(
                label=ENSEMBLE if len(by_way) == 1 else f"{ENSEMBLE} ({way})",
                union=Spread(values=[found["ensemble"]]),
                per_teacher={n: Spread(values=[found["per_teacher"][n]["teacher"]]) for n in teachers},
                agreement=Spread(values=[None]),
                seconds=Spread(values=[None]),
                images=0,
                parameters=parameters,
            )
        )
        if found["ensemble_over_views"] is not None:
            over = {
                "label": f"{rows[-1].label}, over views",
                "union": Spread(values=[found["ensemble_over_views"]]),
            }
            nothing = {name: Spread(values=[None]) for name in teachers}
            rows.append(rows[-1].model_copy(update=over | {"per_teacher": nothing}))
    return rows
