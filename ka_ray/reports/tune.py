"""What a search tries and what it finds: points, trials, the Pareto front. No torch, no Ray."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ka_ray.reports.markdown import table
from ka_ray.reports.sections import ReportSection
from ka_ray.storage.files import write_json, write_text


class Trial(ReportSection):
    """One student that was tried.

    ``agreement`` with the ensemble on held-out images; ``seconds`` that it took; ``epochs`` of joint
    learning; ``stopped`` before its last one, because others were better by then.
    """

    key: str
    widths: dict[str, int]
    ridge: float | None
    learning_rate: float | None
    agreement: float
    parameters: int
    macs: int
    seconds: float
    epochs: int
    stopped: bool = False


class TuneResult(ReportSection):
    """All trials of a search.

    ``front`` are the keys of the trials of which no other has more agreement at the same or a smaller cost;
    ``chosen`` is that of the front with the most agreement within the budget.
    """

    name: str
    cost: str
    budget: int
    images: int
    pass_seconds: float
    search_seconds: float
    failed: dict[str, str]
    trials: list[Trial]
    front: list[str]
    chosen: str | None

    def trial(self, key: str) -> Trial:
        """Find a trial."""
        return next(trial for trial in self.trials if trial.key == key)

    def save(self, folder: Path) -> None:
        """Write ``tune.json`` and ``tune.md`` into a folder."""
        write_json(folder / "tune.json", self.model_dump(mode="json"))
        write_text(folder / "tune.md", self.to_markdown())

    def to_markdown(self) -> str:
        """Write the front, then all trials, for people."""
        ordered = sorted(self.trials, key=lambda trial: (getattr(trial, self.cost), -trial.agreement))
        front = [trial for trial in ordered if trial.key in self.front]
        parts = [
            f"# {self.name}: {len(self.trials)} students tried",
            f"Agreement with the ensemble on {self.images:,} held-out images. The pass over the images took "
            f"{self.pass_seconds:.1f} s, the trials {self.search_seconds:.1f} s.",
            f"## Pareto front: agreement against {self.cost}",
            _rows(front, self.chosen),
            f"Chosen (*): the best within {self.budget:,} {self.cost}. `ka-ray run best.yaml` learns a "
            "student of these widths, with the stages of the config."
            if self.chosen is not None
            else f"No student that was tried costs at most {self.budget:,} {self.cost}.",
            "## All",
            _rows(ordered, self.chosen),
        ]
        if self.failed:
            lines = "\n".join(f"- `{key}`: {error}" for key, error in self.failed.items())
            parts.append(f"## Failed; the same command tries them again\n\n{lines}")
        return "\n\n".join(parts) + "\n"


def _rows(trials: Sequence[Trial], chosen: str | None) -> str:
    header = ("widths", "ridge", "rate", "agreement", "parameters", "million macs", "epochs", "seconds")
    rows = [
        (
            " ".join(map(str, trial.widths.values())) + (" *" if trial.key == chosen else ""),
            "-" if trial.ridge is None else f"{trial.ridge:g}",
            "-" if trial.learning_rate is None else f"{trial.learning_rate:g}",
            f"{trial.agreement:.4f}",
            f"{trial.parameters:,}",
            f"{trial.macs / 1e6:.2f}",
            f"{trial.epochs}{' (stopped)' if trial.stopped else ''}",
            f"{trial.seconds:.1f}",
        )
        for trial in trials
    ]
    return table(header, rows)


def pareto_front(trials: Iterable[Trial], cost: str) -> list[Trial]:
    """Find the trials of which no other has at least the agreement at no more cost, and one of both better.

    Returns:
        From the cheapest to the best; of equal ones the first.
    """
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda one: (getattr(one, cost), -one.agreement, one.key)):
        if not front or trial.agreement > front[-1].agreement:
            front.append(trial)
    return front


def choose_trial(front: Sequence[Trial], cost: str, budget: int) -> Trial | None:
    """Choose the trial of the front with the most agreement within a budget; None if all cost more."""
    within: list[Any] = [trial for trial in front if getattr(trial, cost) <= budget]
    return within[-1] if within else None
