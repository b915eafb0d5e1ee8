"""The images of a run, and its student as a version of a model, as a tracker keeps them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrackedImages:
    """Images that a run read.

    Attributes:
        purpose: What they were for.
        name: A short name of their source, for people.
        source: Path or URI of the source, or what stands for it.
        digest: Digest of the list of these images, at most 36 characters; equal for equal lists.
        images: Their number.
    """

    purpose: Literal["training", "evaluation"]
    name: str
    source: str
    digest: str
    images: int


@dataclass(frozen=True)
class StudentVersion:
    """A student as a new version of a registered model.

    Attributes:
        name: Name of the registered model.
        card: What the student is and how good it is, in Markdown.
        measure: What it is judged by: ``union``, its accuracy on all classes, or ``agreement`` with the
            ensemble of its teachers; empty: it was not judged.
        value: The value of the measure, in [0, 1].
        judged_on: Digest of what the measure was taken on. Only versions with the same one are compared.
    """

    name: str
    card: str
    measure: Literal["union", "agreement", ""]
    value: float
    judged_on: str
