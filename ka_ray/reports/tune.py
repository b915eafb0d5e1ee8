"""The result of `ka-ray tune`: the trials, their Pareto front and the chosen student. No torch, no Ray."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ka_ray.reports.choices import ReportSection
from ka_ray.reports.plain_text import escape_markdown
from ka_ray.reports.tables import format_table
from ka_ray.storage.files import write_json, write_text


class Trial(ReportSection):
    """One student that was tried."""

    key: str
    """Id of the trial, made from its widths, ridge and learning rate; also the name of its folder."""
    widths: dict[str, int]
    """Tap, or path of a layer -> number of channels of the student there."""
    ridge: float | None
    """Ridge penalty of the least-squares fits; None if each layer chose its own on held-out images."""
    learning_rate: float | None
    """Peak learning rate of joint learning; None if the student was not trained jointly."""
    agreement: float
    """Share of the held-out images for which student and ensemble predict the same class."""
    parameters: int
    """Number of parameters of the student."""
    macs: int
    """Multiply-accumulates of the student for one image."""
    seconds: float
    """Duration of the trial, in seconds."""
    epochs: int
    """Number of epochs of joint learning; 0 without joint learning."""
    stopped: bool = False
    """Whether joint learning was stopped early because other trials were better at that epoch."""


class TuneResult(ReportSection):
    """All trials of a search for the widths of the student."""

    name: str
    """Name of the run, from the config."""
    cost: str
    """What the agreement is weighed against: ``parameters`` or ``macs``."""
    budget: int
    """Maximum cost of the chosen student, in the unit of ``cost``."""
    images: int
    """Number of held-out images on which agreement was measured."""
    pass_seconds: float
    """Duration of the one pass over the images, in seconds. All students are computed from its statistics."""
    search_seconds: float
    """Duration of all trials together, in seconds."""
    failed: dict[str, str]
    """Key of a trial that failed -> its error."""
    trials: list[Trial]
    """The trials that finished."""
    front: list[str]
    """Keys of the trials on the Pareto front, from the cheapest to the best."""
    chosen: str | None
    """Key of the trial with the best agreement within the budget; None if all trials cost more."""

    def trial(self, key: str) -> Trial:
        """Return the trial with a key.

        Raises:
            KeyError: No trial has this key.
        """
        return {trial.key: trial for trial in self.trials}[key]

    def save(self, folder: Path) -> None:
        """Write ``tune.json`` and ``tune.md`` into a folder."""
        # tune.json comes last: where it exists, both files are complete.
        write_text(folder / "tune.md", self.to_markdown())
        write_json(folder / "tune.json", self.model_dump(mode="json"))

    def to_markdown(self) -> str:
        """Return the Pareto front and the table of all trials as Markdown, for people."""
        ordered = sorted(self.trials, key=lambda trial: (getattr(trial, self.cost), -trial.agreement))
        front = [trial for trial in ordered if trial.key in self.front]
        # A table cell has only the widths, without the names of the taps. The text above says their order.
        taps = ordered[0].widths if ordered else {}
        parts = [
            f"# {self.name}: {len(self.trials)} students tried",
            f"Agreement with the ensemble was measured on {self.images:,} held-out images. The pass over the "
            f"images took {self.pass_seconds:.1f} s, all trials {self.search_seconds:.1f} s. A row lists the "
            f"widths of a student in this order: {escape_markdown(', '.join(taps))}.",
            f"## Pareto front: agreement against {self.cost}",
            _format_trials(front, self.chosen),
            f"The student marked * was chosen: it has the best agreement of those with at most "
            f"{self.budget:,} {self.cost}. `ka-ray run best.yaml` trains a student of these widths with the "
            "stages of the config."
            if self.chosen is not None
            else f"No student was chosen: every one has more than {self.budget:,} {self.cost}, the budget.",
            "## All trials",
            _format_trials(ordered, self.chosen),
        ]
        if self.failed:
            lines = "\n".join(f"- `{key}`: {escape_markdown(error)}" for key, error in self.failed.items())
            parts.append(f"## Failed trials\n\nRun the same command again to repeat them.\n\n{lines}")
        return "\n\n".join(parts) + "\n"


def _format_trials(trials: Sequence[Trial], chosen: str | None) -> str:
    header = ("widths", "ridge", "learning rate", "agreement", "parameters")
    rows = [
        (
            " ".join(map(str, trial.widths.values())) + (" *" if trial.key == chosen else ""),
            "-" if trial.ridge is None else f"{trial.ridge:g}",
            "-" if trial.learning_rate is None else f"{trial.learning_rate:g}",
            f"{trial.agreement:.4f}",
            f"{trial.parameters:,}",
            f"{trial.macs / 1e6:.2f}",
            f"{trial.epochs}{' (stopped early)' if trial.stopped else ''}",
            f"{trial.seconds:.1f}",
        )
        for trial in trials
    ]
    return format_table((*header, "million multiply-accumulates per image", "epochs", "seconds"), rows)


def pareto_front(trials: Iterable[Trial], cost: str) -> list[Trial]:
    """Return the trials that no other trial beats.

    One trial beats another if its agreement is at least as high and its cost at most as high, and one of
    the two is better. Of several trials with the same agreement and cost only the first is kept.

    Args:
        trials: The trials, in any order.
        cost: Name of the field that is the cost: ``parameters`` or ``macs``.

    Returns:
        The front, from the cheapest trial to the one with the best agreement.
    """
    front: list[Trial] = []
    # In this order a trial is on the front exactly if it agrees more than all cheaper ones.
    for trial in sorted(trials, key=lambda one: (getattr(one, cost), -one.agreement, one.key)):
        if not front or trial.agreement > front[-1].agreement:
            front.append(trial)
    return front


def choose_trial(front: Sequence[Trial], cost: str, budget: int) -> Trial | None:
    """Return the trial of a Pareto front with the best agreement within a budget.

    Args:
        front: The front, as :func:`pareto_front` returns it.
        cost: Name of the field that is the cost: ``parameters`` or ``macs``.
        budget: Maximum cost, in the unit of ``cost``.

    Returns:
        The trial; None if every trial costs more.
    """
    # Along the front both cost and agreement increase, so the last affordable trial is the best.
    affordable: list[Any] = [trial for trial in front if getattr(trial, cost) <= budget]
    return affordable[-1] if affordable else None
