"""The stage `start`: give the student the weights that it starts from.

The batch norms of averaged weights measure their statistics on images, for which no labels are needed.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ka_ray.config import Config, StartConfig
from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.numerics.ranks import rank, sum_over_ranks
from ka_ray.stages.inputs import StageInputs, stage_summary_path
from ka_ray.student import Student, StudentSpec, save_student
from ka_ray.student.batch_norms import measure_batch_norms
from ka_ray.student.start import Start, Weights, build_start, find_head, weight_distance
from ka_ray.student.transfer import transfer_weights
from ka_ray.teachers import Teacher, load_teacher
from ka_ray.teachers.checkpoint_file import read_checkpoint
from ka_ray.teachers.state_dict import find_weights, list_states

MAX_BATCHES = 100
"""Number of batches from which batch norm statistics are measured."""

FAR = 1.0
"""Networks whose weights are further apart, relative to their norm, do not come from one network."""

TRANSFER_TOLERANCE = 1e-3
"""The student's scores may differ by this share of the largest one from those of the network that is cut."""


def start_student_folder(folder: Path) -> Path:
    """Return the folder with the student as it starts, in the output folder of a run."""
    return stage_summary_path(folder, "start").with_suffix("")


def make_start(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Build the student's start, measure its batch norms, and move its weights into the student.

    Returns:
        The student, and the stage's summary.
    """
    config, spec = inputs.config, inputs.plan.spec
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    start = find_start(config, spec, teachers)
    student, network = Student(spec).to(inputs.device).eval(), start.network.to(inputs.device)
    batches = inputs.batches("joint", inputs.store(FEATURES, IMAGES), ["image"])
    images = (student.preprocess(batch["image"]) for batch in islice(batches.epoch(0), MAX_BATCHES))
    measure_batch_norms(network, start.mixed_norms, images, sum_over_ranks)
    transfer_weights(network.eval(), student)
    _check_transfer(network, student, next(iter(batches.epoch(0)))["image"])
    if rank() == 0:
        save_student(student, start_student_folder(inputs.folder))
    return student, {"history": [], "random": list(start.random)}


def find_start(config: Config, spec: StudentSpec, teachers: Sequence[Teacher]) -> Start:
    """Build the start that a config names, before its batch norms are measured.

    Args:
        config: Config of the run.
        spec: The student.
        teachers: The teachers with their weights.

    Raises:
        InputError: The teachers' networks differ and cannot be averaged, or no weight fits the student.
    """
    source = config.student.start
    if source == "average":
        _check_same_network(spec, teachers)
        return build_start(spec, [teacher.network.state_dict() for teacher in teachers], teachers)
    assert isinstance(source, StartConfig)
    if source.teacher is not None:
        teacher = next(teacher for teacher in teachers if teacher.name == source.teacher)
        return build_start(spec, [teacher.network.state_dict()], teachers)
    assert source.checkpoint is not None
    starts = [build_start(spec, [weights], teachers) for weights in _read_states(source.checkpoint)]
    return min(starts, key=lambda start: len(start.random))


def _read_states(path: Path) -> list[Weights]:
    found = [state for weights in find_weights(read_checkpoint(path)) for state in list_states(weights)]
    if not found:
        raise InputError(f"student.start.checkpoint: {path} contains no state dict")
    return list(found)


def _check_same_network(spec: StudentSpec, teachers: Sequence[Teacher]) -> None:
    """Check that every teacher has the student's weights, apart from those of the classes."""
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


def describe_start(config: Config, spec: StudentSpec, teachers: Sequence[Teacher]) -> str | None:
    """Check before a run that its start can be built, and describe it for the user.

    Args:
        config: Config of the run; all of its teachers have checkpoints, or are trained in the run.
        spec: The student.
        teachers: The teachers; random weights stand for those that are yet to be trained.

    Raises:
        InputError: The start cannot be built.
    """
    if config.student.start == "random":
        return None
    start = find_start(config, spec, teachers)
    transfer_weights(start.network, Student(spec).eval())
    total, shown = len(start.network.state_dict()), ", ".join(start.random[:4])
    note = f"student: {total - len(start.random)} of {total} weights come from its start"
    if start.random:
        note += f"; random are {shown}" + (" and others" if len(start.random) > 4 else "")
    trained = all(teacher.checkpoint is not None for teacher in config.teachers)
    if config.student.start != "average" or not trained:
        return note
    distance = weight_distance([teacher.network for teacher in teachers], find_head(spec, teachers))
    note += f"; the teachers' weights are {distance:.2f} of their norm apart"
    if distance > FAR:
        note += (
            ", as if they did not come from one network: their mean is probably useless. Compare "
            "student.start: random"
        )
    return note


def _check_transfer(network: nn.Module, student: Student, images: torch.Tensor) -> None:
    """Check that cutting and folding have not changed the network."""
    with torch.no_grad():
        expected, found = network(student.preprocess(images)), student(images)
    if not isinstance(expected, torch.Tensor):
        return  # a network of several outputs, which the student unpacks
    if (expected - found).abs().max() > TRANSFER_TOLERANCE * expected.abs().max():
        raise RuntimeError("the student computes other scores than the network that it was cut from")
