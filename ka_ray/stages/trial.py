"""One student of a search for widths: computed from the sums of one pass, maybe learned jointly, judged.

This module knows no Ray: a trial runs in one process.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ka_ray.features.stack import SCORES
from ka_ray.features.store import Store
from ka_ray.numerics.ridge import RIDGES
from ka_ray.stages.inputs import StageInputs
from ka_ray.stages.joint import joint_learner
from ka_ray.student import Student, save_student
from ka_ray.student.from_moments import LayerMoments
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, fit


@dataclass(frozen=True)
class TrialStudent:
    """A student to try.

    Attributes:
        widths: tap -> C.
        ridge: Of every layer, in units of its mean input variance; None: chosen for each.
        learning_rate: Of joint learning; None: the student stays as it was computed.
        folder: Gets the student.
    """

    widths: Mapping[str, int]
    ridge: float | None
    learning_rate: float | None
    folder: Path


AgreementCallback = Callable[[dict[str, float]], None]
"""Told ``agreement``, ``epochs`` and ``seconds``."""


def run_trial(
    tried: TrialStudent, one_pass: LayerMoments, inputs: StageInputs, held_out: Path, tell: AgreementCallback
) -> None:
    """Compute a student, learn it jointly if that is wanted, and judge it after every epoch.

    Args:
        tried: Which.
        one_pass: What all trials share.
        inputs: As of a run's stages; of its config ``joint`` and ``scores`` count.
        held_out: Folder with stored images and scores that it is judged on.
        tell: Called once, or after every epoch.
    """
    began = time.perf_counter()
    torch.manual_seed(inputs.config.seed)
    student, _ = one_pass.student(tried.widths, RIDGES if tried.ridge is None else (tried.ridge,))
    student.to(inputs.device)
    judged = Batches(
        Store(held_out), ["image", SCORES], inputs.config.extract.batch_size, 0, device=inputs.device
    )

    def told(epochs: int) -> None:
        save_student(student, tried.folder)
        tell(
            {
                "agreement": agreement(student, judged),
                "epochs": epochs,
                "seconds": time.perf_counter() - began,
            }
        )

    def report(progress: Progress) -> None:
        if progress.epoch_ended:
            told(progress.epoch)

    if tried.learning_rate is None:
        return told(0)
    learner, batches = joint_learner(inputs, student)
    settings = replace(inputs.settings("joint"), learning_rate=tried.learning_rate, checkpoint=None)
    fit(learner.to(inputs.device), batches, settings, report)
    return None


@torch.inference_mode()
def agreement(student: Student, batches: Batches) -> float:
    """Measure on which share of images student and ensemble say the same."""
    training = student.training
    student.eval()
    same = torch.zeros((), dtype=torch.int64, device=batches.device)
    for batch in batches.single_pass():
        ensemble = student.spec.unified_label_sets.amalgamate(batch[SCORES])
        same += (student(batch["image"]).argmax(dim=1) == ensemble.argmax(dim=1)).sum()
    student.train(training)
    return int(same) / len(batches.rows)
