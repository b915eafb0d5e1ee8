"""The part of a report that says what gates were learned, and which one was used."""

from ka_ray.reports.choices import ReportSection


class OwnerCheck(ReportSection):
    """What a gate says of images whose owner is known and that it was not learned from.

    Every teacher's images together count the same.
    """

    images: int
    """Number of images whose owner is known."""
    penalty: float
    """Penalty of the gate's weights, chosen on these images."""
    per_class: bool
    """Whether the gate has weights for every class, instead of for every teacher; chosen on these images."""
    log_loss: float
    """Mean of -log p(owner) with the gate, in nats."""
    ungated_log_loss: float
    """The same by the teachers' scores alone."""
    owner_accuracy: float
    """Share of the images whose most probable owner is the right one, with the gate."""
    ungated_owner_accuracy: float
    """The same by the teachers' scores alone."""
    standard_error: float
    """Standard error of the difference of the log losses."""
    helps: bool
    """Whether the gate is better by more than one standard error, and not less often right."""
    learning_curve: dict[int, float]
    """Number of images per teacher that a gate learned from -> its share of right owners on the others."""


class GateQuality(ReportSection):
    """A gate that was learned."""

    hints: dict[str, int]
    """Name of a teacher -> number of images that it is known to own; empty for a gate that taught itself."""
    check: OwnerCheck | None
    """How well it tells owners, by cross-validation; None without hints."""
    changed: float
    """Share of the stored images that go to another owner than by the teachers' scores alone."""
    seconds: float
    """Time that learning it took, in seconds."""


class GateChoice(ReportSection):
    """All gates of a run, and the one that the student's scores went through."""

    used: str
    """hints, self, or none."""
    gates: dict[str, GateQuality]
    """Name of each gate that was learned -> its quality."""
