"""The parts of a report that say what gates were learned, which one was used, and what it is worth."""

from ka_ray.reports.choices import ReportSection


class OwnerCheck(ReportSection):
    """What a gate says of images whose owner is known and that it was not learned from.

    Every teacher's images together count the same. Losses and accuracies are of the teachers' images.
    """

    images: int
    """Number of images of which it is known which teacher owns them."""
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
    nobody_found: float | None
    """Share of nobody's images that the gate leaves out; None if it has learned from none."""
    lost: float
    """Share of the teachers' images that it leaves out with them."""
    helps: bool
    """Whether the gate is better by more than one standard error, not less often right, and loses few images
    of the teachers."""
    learning_curve: dict[int, float]
    """Number of images per teacher that a gate learned from -> its share of right owners on the others."""


class GateQuality(ReportSection):
    """A gate that was learned or reused."""

    hints: dict[str, int]
    """Name of a teacher, or nobody -> number of images that it is known to own; empty for `self`."""
    check: OwnerCheck | None
    """How well it tells owners, by cross-validation; None if it learned from none."""
    changed: float
    """Share of the stored images that go to another owner than by the teachers' scores alone."""
    left_out: float
    """Share of the stored images that belong to nobody: a student with this gate does not learn from them."""
    seconds: float
    """Time that learning it took, in seconds."""
    extended: str | None = None
    """Output folder of the finished run whose gate is reused among its teachers; None if it was learned."""


class GateChoice(ReportSection):
    """All gates of a run, and the one that the student's scores went through."""

    used: str
    """owners, hints, self, extended, or none."""
    gates: dict[str, GateQuality]
    """Name of each gate that was learned or reused -> its quality."""


class GateAccuracy(ReportSection):
    """What a gate is worth on the evaluation images: how well it says whose class an image shows.

    An image's owner is a teacher that knows its class.
    """

    ensemble: float | None
    """Accuracy of the ensemble with the gate, in [0, 1]; None without labels."""
    changed: float
    """Share of the images that the gate gives to another owner than the ensemble does."""
    owner_accuracy: float | None
    """Share of the labelled images that the gate gives to an owner; None without labels."""
    ungated_owner_accuracy: float | None
    """Share of the labelled images whose owner the ensemble prefers; None without labels."""
    oracle: float | None
    """Accuracy of the ensemble if all owners were known; None without labels or if classes are shared."""

    def closed(self, ensemble: float | None, accuracy: float | None) -> float | None:
        """Return which share of the gap from the ensemble to the oracle an accuracy closes.

        Args:
            ensemble: Accuracy of the ensemble without a gate.
            accuracy: Another accuracy on the same images.
        """
        if ensemble is None or accuracy is None or self.oracle is None or self.oracle <= ensemble:
            return None
        return (accuracy - ensemble) / (self.oracle - ensemble)
