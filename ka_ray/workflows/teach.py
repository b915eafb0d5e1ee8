"""`ka-ray teach`: train one teacher from scratch, track it, and evaluate it on held-out images."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ka_ray.amalgamation import LabelSets
from ka_ray.config import TeachConfig, TeacherConfig
from ka_ray.distributed.evaluate import evaluate_images
from ka_ray.distributed.evaluator import TEACHERS_ONLY, Evaluation
from ka_ray.distributed.resources import pools_of
from ka_ray.images.split import ImageSet, check_labels, count_labels, split_images
from ka_ray.images.views import IMAGE, make_view
from ka_ray.reports.accuracy import measure_accuracy
from ka_ray.reports.labels import match_labels
from ka_ray.runs.context import RunContext, open_context
from ka_ray.runs.first_checks import check_first
from ka_ray.runs.label_checks import check_evaluation_labels
from ka_ray.runs.learned_images import NOT_COMPARED, read_learned_digests, warn_of_learned_images
from ka_ray.runs.listings import check_listings, list_sources
from ka_ray.runs.output_folder import claim_output_dir
from ka_ray.runs.teachers import train_teachers, with_checkpoint
from ka_ray.runs.tracked import track_images
from ka_ray.stages.teacher import teacher_checkpoint_path
from ka_ray.storage.files import write_json
from ka_ray.teachers import build_teacher
from ka_ray.teachers.sources.describe import describe_teacher


class TaughtTeacher(BaseModel):
    """A teacher that was trained, as ``teacher.json`` holds it.

    Attributes:
        teacher: The name of the teacher.
        checkpoint: The path of its weights.
        accuracy: Its accuracy on the evaluation images of its classes; None if there are none with labels.
        images: The number of these images.
        left_out: Label that is no class of the teacher -> number of evaluation images with it, which are not
            read; empty also if the source does not list its labels.
        learned_images: The number of them that it has learned from, by their pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    checkpoint: str
    accuracy: float | None
    images: int
    left_out: dict[str, int] = {}
    learned_images: int = 0


def teach(config: TeachConfig) -> TaughtTeacher:
    """Train one teacher on the labelled images of its classes; skipped if its checkpoint exists.

    Args:
        config: See ``jobs/configs/cifar10_teacher_a.yaml``.

    Returns:
        The teacher's checkpoint and accuracy; the output folder also holds them as ``teacher.json``.

    Raises:
        InputError: Something in the config cannot work.
    """
    check_first(config)
    teacher, note = describe_teacher(config.teacher)
    config = config.model_copy(update={"teacher": teacher})
    view = make_view(config.teacher.preprocessing, config.images)
    build_teacher(config.teacher).check_forward_pass(view, {})
    training_images, evaluation_images = (images.with_views({IMAGE: view}) for images in split_images(config))
    classes, whose = teacher.classes, f"teacher {teacher.name}"
    check_labels(classes, training_images, whose)
    note_on_labels = check_evaluation_labels(evaluation_images, classes, whose)
    notes = [images.source.note for images in (training_images, evaluation_images)]
    notes += warn_of_learned_images(training_images, evaluation_images)
    with claim_output_dir(config) as folder:
        check_listings(folder, list_sources(training_images, evaluation_images))
        with open_context(config, folder, config.name) as context:
            track_images(context.tracker, training_images, evaluation_images)
            context.notify(note, *dict.fromkeys(notes), note_on_labels)
            checkpoint = teacher_checkpoint_path(folder, config.teacher.name)
            if not checkpoint.exists():
                columns = {config.teacher.name: IMAGE}
                train_teachers(context, [config.teacher], training_images, folder, columns)
            result = _evaluate(context, config, checkpoint, evaluation_images)
            warnings = warn_of_learned_images(training_images, evaluation_images, result.learned_images)
            context.notify(*warnings)
            context.tracker.log_warnings(warnings)
            if result.accuracy is not None:
                context.tracker.log_metrics({"evaluate/accuracy": result.accuracy})
        write_json(folder / "teacher.json", result.model_dump(mode="json"))
    return result


def _evaluate(context: RunContext, config: TeachConfig, checkpoint: Path, images: ImageSet) -> TaughtTeacher:
    teacher: TeacherConfig = with_checkpoint(config.teacher, checkpoint)
    work = Evaluation(
        images=images,
        label_sets=LabelSets({teacher.name: teacher.classes}),
        teachers=[teacher],
        students={},
        pools=pools_of(config, context.resources.placement),
        only_classes=frozenset(teacher.classes),
        learned=read_learned_digests([context.folder]),
    )
    context.notify(NOT_COMPARED if work.learned is None else None)
    with context.track_images("evaluate", len(images.ids)) as on_images:
        counts, summary = evaluate_images(work, on_images)
    accuracy = measure_accuracy(counts[TEACHERS_ONLY], [teacher.name])
    labels = match_labels(count_labels(images) or {}, teacher.classes)
    return TaughtTeacher(
        teacher=teacher.name,
        checkpoint=str(checkpoint),
        accuracy=accuracy.per_teacher[teacher.name].teacher,
        images=summary["images"],
        left_out=labels.unmatched,
        learned_images=summary["learned_images"],
    )
