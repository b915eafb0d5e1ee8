"""List the starts that a config asks for: the one that it names, or all that may apply."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ka_ray.config import Config, EnergyWidths, StartConfig
from ka_ray.errors import InputError
from ka_ray.stages.exact_source import ExactSource
from ka_ray.stages.start_sources import (
    AlignedAverage,
    Source,
    WeightsSource,
    check_same_network,
)
from ka_ray.student import StudentSpec
from ka_ray.student.start import Start, Weights, build_start, find_head, weight_distance
from ka_ray.teachers import Teacher
from ka_ray.teachers.checkpoint_file import read_checkpoint
from ka_ray.teachers.state_dict import find_weights, list_states

SAME_ORIGIN = 0.5
"""Networks whose weights are closer to each other, relative to their norm, were fine-tuned from one network.

Networks that were trained from different seeds are about 1.4 apart, fine-tuned ones about 0.1.
"""


MIN_SHARE = 0.5
"""Share of the weights before the head that a start must have, to be tried without being named."""


def reads_teacher_images(config: Config) -> bool:
    """Return whether a start or widths may be measured on the teachers' features, for which they need pixels.

    Args:
        config: Config of the run.
    """
    measured = isinstance(config.student.widths, EnergyWidths)
    return measured or config.student.start in ("auto", "average", "exact")


def list_sources(
    config: Config, spec: StudentSpec, teachers: Sequence[Teacher], same_origin: bool | None = None
) -> Mapping[str, Source]:
    """List the starts that a config asks for.

    Args:
        config: Config of the run; its start is not random.
        spec: The student.
        teachers: The teachers with their weights, or, to check the starts, without the values.
        same_origin: Whether the teachers were fine-tuned from one network. None: found out by their weights.

    Returns:
        Name of each start -> its source.
    """
    source, sources = config.student.start, dict[str, Source]()
    if isinstance(source, StartConfig) and source.checkpoint is not None:
        make = partial(_from_checkpoint, source.checkpoint, spec, teachers)
        return {f"checkpoint {source.checkpoint}": WeightsSource(spec, make)}
    if source == "auto" and config.student.widths is not None:
        return {"exact": ExactSource(spec, teachers)}  # no teacher has weights of such widths
    # Aligning and solving take longer, and teachers of one origin need neither.
    one_origin = False
    if source in ("auto", "average"):
        one_origin = is_same_origin(spec, teachers) if same_origin is None else same_origin
    if source in ("auto", "average"):
        sources["average"] = WeightsSource(spec, partial(_average, spec, teachers))
        if not one_origin:
            sources["average, aligned"] = AlignedAverage(spec, teachers)
    if source == "exact" or (source == "auto" and not one_origin):
        sources["exact"] = ExactSource(spec, teachers)
    for teacher in teachers:
        if source == "auto" or (isinstance(source, StartConfig) and source.teacher == teacher.name):
            make = partial(build_start, spec, [teacher.network.state_dict()], teachers)
            min_share = MIN_SHARE if source == "auto" else 0.0
            sources[f"teacher {teacher.name}"] = WeightsSource(spec, make, min_share)
    return sources


def is_same_origin(spec: StudentSpec, teachers: Sequence[Teacher]) -> bool:
    """Return whether the teachers were fine-tuned from one network, judged by the distance of their weights.

    Args:
        spec: The student.
        teachers: The teachers with their weights.
    """
    distance = find_distance(spec, teachers, teachers)
    return distance is not None and distance < SAME_ORIGIN


def find_distance(
    spec: StudentSpec, teachers: Sequence[Teacher], skeletons: Sequence[Teacher]
) -> float | None:
    """Return how far apart the teachers' weights are; None if their networks differ.

    Args:
        spec: The student.
        teachers: The teachers with their weights, asked for one after the other.
        skeletons: The same teachers, with or without the values of their weights.
    """
    try:
        check_same_network(spec, skeletons)
    except InputError:
        return None
    head = find_head(spec, skeletons)
    return weight_distance((teachers[i].network for i in range(len(teachers))), head)


def _average(spec: StudentSpec, teachers: Sequence[Teacher]) -> Start:
    check_same_network(spec, teachers)
    return build_start(spec, [teacher.network.state_dict() for teacher in teachers], teachers)


def _from_checkpoint(path: Path, spec: StudentSpec, teachers: Sequence[Teacher]) -> Start:
    """Build the start from the state dict of a checkpoint that fits best."""
    tensors = find_weights(read_checkpoint(path))
    found: list[Weights] = [state for weights in tensors for state in list_states(weights)]
    if not found:
        raise InputError(f"student.start.checkpoint: {path} contains no state dict")
    starts = [build_start(spec, [weights], teachers) for weights in found]
    return min(starts, key=lambda start: len(start.random))
