"""Students of one command that start alike: the start is built once, and copied for the others."""

from collections.abc import Sequence
from pathlib import Path

from ka_ray.config import Config
from ka_ray.numerics.ranks import rank, wait_for_all
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.start import start_student_folder
from ka_ray.storage.files import atomic_file, exists, make_folder, read_bytes
from ka_ray.student.plan import Plan

LATER = {
    "name",
    "output",
    "codes",
    "layers",
    "joint",
    "baseline",
    "baselines",
    "evaluation",
    "tracking",
    "tune",
}
"""Keys of a config that say what happens to a student behind its start, or where its results go."""


def describe_origin_of_start(config: Config, plan: Plan) -> tuple[object, ...] | None:
    """Return all that a student's start depends on, besides the stored images; equal for the same starts.

    Args:
        config: The config of the student.
        plan: Its plan.

    Returns:
        Something to compare; None if the student starts from random weights, which are no start to share.
    """
    if config.student.start == "random":
        return None
    # The start is measured and judged in the batches of joint learning.
    return plan.spec, config.joint.batch_size, config.model_dump(exclude=LATER)


def copy_start(sources: Sequence[Path], folder: Path) -> None:
    """Copy the first start that is finished, unless the student has its own; all ranks call this together.

    Args:
        sources: Folders of students that start alike.
        folder: Folder of the student.
    """
    if rank() == 0 and not exists(stage_summary_path(folder, "start")):
        for source in sources:
            if exists(stage_summary_path(source, "start")):
                _copy(source, folder)
                break
    wait_for_all()


def _copy(source: Path, folder: Path) -> None:
    student = start_student_folder(source)
    copies = [(path, start_student_folder(folder) / path.name) for path in sorted(student.iterdir())]
    one, other = (stage_summary_path(place, "start") for place in (source, folder))
    copies.append((one.with_suffix(".safetensors"), other.with_suffix(".safetensors")))
    copies.append((one, other))  # the summary comes last: it marks the stage as finished
    for path, target in copies:
        make_folder(target.parent)
        with atomic_file(target) as part:
            part.write_bytes(read_bytes(path))
