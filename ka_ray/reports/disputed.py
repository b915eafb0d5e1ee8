"""The images for which student and ensemble are sure of different classes."""

import base64

from ka_ray.disputes import Dispute
from ka_ray.reports.choices import ReportSection


class DisputedImage(ReportSection):
    """An evaluation image for which student and ensemble predict different classes."""

    label: str
    """Label of the image; empty without one."""
    student: str
    """The class that the student predicts."""
    student_probability: float
    """How sure the student is: the softmax of its scores, in [0, 1]."""
    ensemble: str
    """The class that the ensemble predicts, with the gate if there is one."""
    ensemble_probability: float
    """How sure the ensemble is, in [0, 1]."""
    picture: str
    """The student's pixels as a small JPEG file, in base64."""


def describe_dispute(dispute: Dispute) -> DisputedImage:
    """Return what a report has of a disputed image."""
    shown = {key: getattr(dispute, key) for key in DisputedImage.model_fields}
    return DisputedImage.model_validate(shown | {"picture": base64.b64encode(dispute.picture).decode()})
