"""What a run stores of its images before anything is learned, and how many bytes that takes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.split import ImageSet, split_for_features
from ka_ray.runs.execution import is_stored
from ka_ray.runs.gate_samples import HINTS, Embedding, list_embeddings, list_hints
from ka_ray.stages.start_list import reads_teacher_images
from ka_ray.student.plan import Plan
from ka_ray.teachers.reading import ReadSpec

StoredPart = tuple[str, ImageSet, int, ReadSpec]
"""What is stored in one pass: name of the folder, images, bytes of an image, and what is read of teachers."""


def list_missing_parts(
    config: Config,
    plan: Plan,
    images: ImageSet,
    students: Sequence[Config],
    embeddings: Mapping[str, Embedding],
) -> list[StoredPart]:
    """List what a run is yet to store, without what its output folder already holds.

    Args:
        config: The config of the run.
        plan: Its plan.
        images: The training images.
        students: The configs of the students that will learn from what is stored.
        embeddings: Teacher, or descriptive network -> its embedding, if a gate needs them.

    Raises:
        InputError: The output folder holds a run that stored no features, and they are needed.
    """
    parts = _list_parts(config, plan, images, students, embeddings)
    return [part for part in parts if len(part[1].ids) and not is_stored(config.output_dir / part[0])]


def count_missing_bytes(config: Config, plan: Plan, images: ImageSet, students: Sequence[Config]) -> int:
    """Return how many bytes a run will store, before it has started.

    What would lose too much as float16 takes more; that is found out in the run.

    Args:
        config: The config of the run; every teacher has a checkpoint.
        plan: Its plan.
        images: The training images.
        students: The configs of the students that will learn from what is stored.

    Raises:
        InputError: As in :func:`list_missing_parts`, or it is not clear what the embedding of a teacher is.
    """
    embeddings, _ = list_embeddings(config, plan, students)
    parts = list_missing_parts(config, plan, images, students, embeddings)
    return sum(len(stored.ids) * row_bytes for _, stored, row_bytes, _ in parts)


def _list_parts(
    config: Config,
    plan: Plan,
    images: ImageSet,
    students: Sequence[Config],
    embeddings: Mapping[str, Embedding],
) -> Iterator[StoredPart]:
    folder, needs_features = config.output_dir, any(student.learns_layers for student in students)
    if needs_features and is_stored(folder / IMAGES) and not is_stored(folder / FEATURES):
        raise InputError(
            f"{folder} holds a run that stored no features, and layers are learned from features; give "
            "another --output"
        )
    # Features that an earlier command has stored are those of images that this one needs, too.
    limit = config.extract.images if needs_features or is_stored(folder / FEATURES) else 0
    kept, others = split_for_features(images, limit, config.seed)
    columns, stored = plan.views.read_columns, _stored_images(plan, students)
    image_bytes = plan.image_bytes(stored) + sum(embedding.bytes for embedding in embeddings.values())
    last_layers = {teacher: embedding.path for teacher, embedding in embeddings.items()}
    features = ReadSpec(plan.paths, plan.spaces, config.scores, columns, stored, last_layers)
    scores = dataclasses.replace(features, paths={}, spaces={})
    yield FEATURES, kept, plan.feature_bytes + image_bytes, features
    # A start measures its batch norms on images, also if nothing is learned behind it.
    if any(student.joint.any_steps or student.student.start != "random" for student in students):
        yield IMAGES, others, image_bytes, scores
    hints = list_hints(config) if any("hints" in student.gates for student in students) else None
    if hints is not None:
        hints = hints.with_views(plan.views.columns)
        yield HINTS, hints, image_bytes, dataclasses.replace(scores, stored_images=())


def _stored_images(plan: Plan, students: Sequence[Config]) -> tuple[str, ...]:
    """Return the teachers' columns of images: stored if teachers see images again in the training workers."""
    # Some starts are measured on the teachers' own features.
    if any(reads_teacher_images(student) for student in students):
        return plan.views.other_columns
    joint = [student.joint for student in students]
    joint += [student.baselines.distill.apply_to(student.joint, 1) for student in students]
    return plan.views.other_columns if any(section.augment.on for section in joint) else ()
