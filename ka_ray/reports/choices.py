"""The sections of a report on what was chosen without labels: where the student starts, what is kept."""

from pydantic import BaseModel, ConfigDict


class ReportSection(BaseModel):
    """A part of a report. It is immutable, and it refuses unknown keys."""

    # extra="forbid": a misspelt key must not be read as if the right one were missing.
    # use_attribute_docstrings: the string below a field becomes its description in the JSON schema.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HeldOutQuality(ReportSection):
    """How well a student fits its teachers' scores, without labels, on images that it did not learn from."""

    agreement: float
    """Share of the images for which student and ensemble predict the same class."""
    divergence: float
    """Mean KL divergence of the student's distribution over the classes from the ensemble's, in nats.

    Of the start and the students of all epochs, the one for which it is the smallest is kept.
    """
    worst_divergence: float
    """The same from one teacher, among its classes, for the teacher that the student follows worst, in nats.

    The start for which it is the smallest is chosen.
    """
    images: int
    """Number of held-out training images."""


class StartCandidate(HeldOutQuality):
    """A start that was built and judged."""

    name: str
    """Where the weights came from, such as ``average`` or ``teacher NAME, ridge head``."""
    seconds: float
    """Seconds that it took to build and judge it."""
    note: str = ""
    """What was tried to build it."""


class StudentChoice(ReportSection):
    """The choice without labels of the student that is kept: its start, or the student of an epoch."""

    best: str
    """Name of the student that was kept: ``start``, or ``epoch N``."""
    qualities: dict[str, HeldOutQuality]
    """Name of each student -> its quality."""
