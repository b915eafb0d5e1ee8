"""How a trial of `ka-ray tune` computes its student: from moments of codes, or layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ka_ray.config import STUDENT
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.views import IMAGE
from ka_ray.stages.inputs import StageInputs
from ka_ray.student import Student, StudentSpec
from ka_ray.student.block_solver import BlockSolverSettings, solve_student
from ka_ray.student.from_moments import LayerMoments
from ka_ray.student.transfer import transfer_weights
from ka_ray.teachers import load_teacher

TRIAL_MEMORY_GIB = 1.5
"""Largest size of the values of all networks in a trial: several trials run on a node at the same time."""


class TrialSolver(Protocol):
    """Computes students of any widths."""

    def build_spec(self, widths: Mapping[str, int]) -> StudentSpec:
        """Return the student with these widths.

        Args:
            widths: Tap, or layer -> number of channels.
        """

    def solve(self, widths: Mapping[str, int], ridges: Sequence[float], inputs: StageInputs) -> Student:
        """Compute a student, on the CPU or on the device of the inputs.

        Args:
            widths: Tap, or layer -> number of channels.
            ridges: Candidates for the ridge, in units of the mean variance of an input.
            inputs: Inputs of a training stage.
        """


@dataclass(frozen=True)
class MomentsSolver:
    """Computes students of a family from moments of the codes, without reading images again.

    Attributes:
        moments: The moments.
    """

    moments: LayerMoments

    def build_spec(self, widths: Mapping[str, int]) -> StudentSpec:
        """Return the student with these widths.

        Args:
            widths: Tap -> number of channels of its code.
        """
        return replace(self.moments.spec, widths=dict(widths))

    def solve(self, widths: Mapping[str, int], ridges: Sequence[float], inputs: StageInputs) -> Student:
        """Compute a student.

        Args:
            widths: Tap -> number of channels of its code.
            ridges: Candidates for the ridge.
            inputs: Not used.
        """
        return self.moments.compute_student(widths, ridges)[0]


@dataclass(frozen=True)
class LayersSolver:
    """Solves students of any network layer by layer, each on its own features of stored images.

    Attributes:
        spec: The student as configured.
    """

    spec: StudentSpec

    def build_spec(self, widths: Mapping[str, int]) -> StudentSpec:
        """Return the student with these widths.

        Args:
            widths: Path of the first layer of each group of channels -> number of channels.
        """
        return replace(self.spec, layer_widths=dict(widths))

    def solve(self, widths: Mapping[str, int], ridges: Sequence[float], inputs: StageInputs) -> Student:
        """Compute a student.

        Args:
            widths: Path of the first layer of each group of channels -> number of channels.
            ridges: Candidates for the ridge.
            inputs: Inputs of a training stage, whose store has the images that each network gets.
        """
        spec = self.build_spec(widths)
        student = Student(spec).to(inputs.device).eval()
        solved, _ = solve_student(
            spec.build_network().to(inputs.device),
            student.preprocess,
            [load_teacher(teacher).to(inputs.device) for teacher in inputs.config.teachers],
            spec.unified_label_sets,
            _read_images(inputs),
            settings=BlockSolverSettings(memory_gib=TRIAL_MEMORY_GIB, ridges=ridges),
        )
        transfer_weights(solved, student)
        return student


def _read_images(inputs: StageInputs) -> Iterator[dict[str, Tensor]]:
    """Yield the pixels that each network gets of the stored images."""
    columns = {STUDENT: IMAGE}
    columns |= {t.name: inputs.plan.views.column(t.name) for t in inputs.config.teachers}
    store = inputs.store(FEATURES, IMAGES)
    for batch in inputs.batches("joint", store, list(dict.fromkeys(columns.values()))).epoch(0):
        yield {name: batch[column] for name, column in columns.items()}
