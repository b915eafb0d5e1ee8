"""What a student can start from: the starts that a config names, or all that apply."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ka_ray.config import Config, StartConfig
from ka_ray.errors import InputError
from ka_ray.student import StudentSpec
from ka_ray.student.start import Start, Weights, build_start, find_head
from ka_ray.teachers import Teacher
from ka_ray.teachers.checkpoint_file import read_checkpoint
from ka_ray.teachers.state_dict import find_weights, list_states

RANDOM = "random"
AVERAGE = "average"


def list_sources(
    config: Config, spec: StudentSpec, teachers: Sequence[Teacher]
) -> Mapping[str, Callable[[], Start]]:
    """List the starts that a config asks for.

    Args:
        config: Config of the run; its start is not random.
        spec: The student.
        teachers: The teachers with their weights.

    Returns:
        Name of each start -> function that builds it, before its batch norms are measured. The function
        raises an InputError if the start does not apply to these networks.
    """
    source = config.student.start
    if isinstance(source, StartConfig) and source.checkpoint is not None:
        return {
            f"checkpoint {source.checkpoint}": partial(_from_checkpoint, source.checkpoint, spec, teachers)
        }
    per_teacher = {
        f"teacher {teacher.name}": partial(build_start, spec, [teacher.network.state_dict()], teachers)
        for teacher in teachers
    }
    if isinstance(source, StartConfig):
        name = f"teacher {source.teacher}"
        return {name: per_teacher[name]}
    average = {AVERAGE: partial(_average, spec, teachers)}
    return average if source == AVERAGE else average | per_teacher


def _average(spec: StudentSpec, teachers: Sequence[Teacher]) -> Start:
    check_same_network(spec, teachers)
    return build_start(spec, [teacher.network.state_dict() for teacher in teachers], teachers)


def _from_checkpoint(path: Path, spec: StudentSpec, teachers: Sequence[Teacher]) -> Start:
    """Build the start from the state dict of a checkpoint that fits best."""
    found: list[Weights] = [
        s for weights in find_weights(read_checkpoint(path)) for s in list_states(weights)
    ]
    if not found:
        raise InputError(f"student.start.checkpoint: {path} contains no state dict")
    starts = [build_start(spec, [weights], teachers) for weights in found]
    return min(starts, key=lambda start: len(start.random))


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


def build_applicable(
    sources: Mapping[str, Callable[[], Start]], strict: bool
) -> tuple[dict[str, Start], dict[str, str]]:
    """Build starts, and say which of them do not apply.

    Args:
        sources: Result of :func:`list_sources`.
        strict: Whether a start that does not apply is an error, because the config names it.

    Returns:
        Name -> start, and name -> why it does not apply.

    Raises:
        InputError: A start does not apply, and ``strict`` is set.
    """
    starts, skipped = dict[str, Start](), dict[str, str]()
    for name, build in sources.items():
        try:
            starts[name] = build()
        except InputError as error:
            if strict:
                raise
            skipped[name] = str(error)
    return starts, skipped
