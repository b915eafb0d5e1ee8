"""The kinds of starts of a student: from weights, from aligned networks, and solved layer by layer."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.student import Student, StudentSpec
from ka_ray.student.align import align_channels
from ka_ray.student.channel_groups import find_channel_groups
from ka_ray.student.start import Start, build_start, find_head
from ka_ray.student.transfer import transfer_weights
from ka_ray.teachers import Teacher

ALIGNMENT_BATCHES = 20
"""Number of batches on which channels are matched."""

MAX_LISTED = 4
"""Number of random weights that a note names."""

ReadImages = Callable[[], Iterator[Mapping[str, Tensor]]]
"""Returns this rank's images: name of a teacher, or "student" -> its pixels `[B, C, H, W]`."""

Judge = Callable[[nn.Module], float]
"""Returns how far a student's network is from the teacher that it follows worst, on held-out images.

All ranks call it equally often and get the same value."""

ReportStep = Callable[[str, int, int, dict[str, float]], None]
"""Reports progress: what is done, the number of finished steps, that of all steps, and named values."""


class Source(Protocol):
    """Something that a student can start from."""

    def check(self) -> str:
        """Check that the start applies to these networks, and say what it consists of.

        Raises:
            InputError: It does not apply; the message says why.
        """

    def build(self, read_images: ReadImages, report: ReportStep, judge: Judge) -> Start:
        """Build the start, before its batch norms are measured.

        Args:
            read_images: Gives images to measure on, on which no start is judged.
            report: Called with progress by a start that takes long.
            judge: Chooses between ways to build it.

        Raises:
            InputError: It does not apply.
        """


@dataclass(frozen=True)
class WeightsSource:
    """A start that needs no images, only the weights of networks.

    Attributes:
        spec: The student.
        make: Builds the start.
        min_share: Share of the weights before the head that must fit.
    """

    spec: StudentSpec
    make: Callable[[], Start]
    min_share: float = 0.0

    def check(self) -> str:
        """Build the start, and move it into a student."""
        start = self._make()
        transfer_weights(start.network, Student(self.spec).eval())
        total, shown = len(start.network.state_dict()), ", ".join(start.random[:MAX_LISTED])
        note = f"{total - len(start.random)} of {total} weights"
        if start.random:
            note += f", random are {shown}" + (" and others" if len(start.random) > MAX_LISTED else "")
        return note

    def build(self, read_images: ReadImages, report: ReportStep, judge: Judge) -> Start:
        """Build the start.

        Args:
            read_images: Not used.
            report: Not used.
            judge: Not used.
        """
        return self._make()

    def _make(self) -> Start:
        start = self.make()
        if start.share < self.min_share:
            raise InputError(f"student.start: only {start.share:.0%} of its weights fit the student")
        return start


@dataclass(frozen=True)
class MeasuredSource:
    """A start that is measured on images, for student and teachers of one architecture.

    Attributes:
        spec: The student.
        teachers: The teachers with their weights.
    """

    spec: StudentSpec
    teachers: Sequence[Teacher]

    def example(self) -> Tensor:
        """Return two black images as input of the networks: only their shape matters."""
        preprocess = self.teachers[0].preprocess
        black = torch.zeros(2, *self.spec.view.shape, dtype=torch.uint8, device=preprocess.mean.device)
        images: Tensor = preprocess(black)
        return images

    def build_network(self) -> nn.Module:
        """Return the student's network before it is cut, with random weights."""
        return self.spec.build_network().to(self.teachers[0].preprocess.mean.device)


@dataclass(frozen=True)
class AlignedAverage(MeasuredSource):
    """The mean of networks of different origin, whose channels are brought into one order first."""

    def check(self) -> str:
        """Check that the networks are of one architecture whose channels can be permuted."""
        check_student_network(self.spec, self.teachers)
        groups = find_channel_groups(self.teachers[0].network, self.example()).groups
        return f"{sum(not group.fixed for group in groups)} groups of channels are matched"

    def build(self, read_images: ReadImages, report: ReportStep, judge: Judge) -> Start:
        """Match the channels of each network with those of the first one, and average them.

        Args:
            read_images: Gives images on which channels are compared.
            report: Not used.
            judge: Not used.
        """
        check_student_network(self.spec, self.teachers)
        first, *others = self.teachers
        groups, aligned, notes = find_channel_groups(first.network, self.example()), [first], list[str]()
        for other in others:
            pairs = (
                (first.preprocess(batch[first.name]), other.preprocess(batch[other.name]))
                for batch in islice(read_images(), ALIGNMENT_BATCHES)
            )
            found = align_channels(first.network, other.network, groups, pairs, sum_over_ranks)
            network = copy.deepcopy(other.network)
            network.load_state_dict(found.state)
            aligned.append(replace(other, network=network))
            notes.append(
                f"channels of {other.name} correlate {found.correlation_before:.2f} with those of "
                f"{first.name}, aligned {found.correlation_after:.2f}"
            )
        start = build_start(self.spec, [teacher.network.state_dict() for teacher in aligned], aligned)
        return replace(start, note="; ".join(notes))


def check_same_network(spec: StudentSpec, teachers: Sequence[Teacher]) -> None:
    """Check that every teacher has the weights of the first one, apart from those of the classes.

    Args:
        spec: The student.
        teachers: The teachers.

    Raises:
        InputError: Their networks differ, so that they cannot be averaged.
    """
    head, first = find_head(spec, teachers), teachers[0].network.state_dict()
    for teacher in teachers[1:]:
        state = teacher.network.state_dict()
        differing = [key for key in first.keys() | state.keys() if key not in head and (
            key not in first or key not in state or first[key].shape != state[key].shape
        )]  # fmt: skip
        if differing:
            raise InputError(
                f"student.start: average needs teachers of one architecture, but {teachers[0].name} and "
                f"{teacher.name} differ in {len(differing)} weights, such as {min(differing)}; start from "
                f"{{teacher: {teachers[0].name}}} or from random"
            )


def check_student_network(spec: StudentSpec, teachers: Sequence[Teacher]) -> None:
    """Check that student and teachers are of one architecture, apart from their classes.

    Args:
        spec: The student.
        teachers: The teachers.

    Raises:
        InputError: Their networks differ.
    """
    check_same_network(spec, teachers)
    head, known = find_head(spec, teachers), teachers[0].network.state_dict()
    own = spec.build_own_network().state_dict()
    if any(key not in known or known[key].shape != own[key].shape for key in own.keys() - head.keys()):
        raise InputError(
            f"student.start: the student's network {spec.network!r} is of another architecture or width than "
            "those of the teachers"
        )
