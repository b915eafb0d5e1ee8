"""Train one teacher from scratch, track it, and judge it on held-out images."""

from typing import Any

from ka_ray.amalgamation import LabelSets
from ka_ray.config import TeachConfig, TeacherConfig
from ka_ray.distributed.evaluate import TEACHERS_ALONE, Evaluation, evaluate_images
from ka_ray.distributed.resources import pools_of
from ka_ray.images.split import ImageSet, split_images
from ka_ray.metrics import accuracies
from ka_ray.runs.context import open_run
from ka_ray.runs.output_folder import prepare_output_dir
from ka_ray.runs.steps import teach_all, with_checkpoint
from ka_ray.stages.teacher import teacher_checkpoint
from ka_ray.storage.files import write_json
from ka_ray.teachers import build_teacher
from ka_ray.terminal.progress import Display


def teach(config: TeachConfig) -> dict[str, Any]:
    """Train one teacher on the labelled images of its classes; skipped where its checkpoint stands.

    Args:
        config: See ``jobs/configs/cifar10_teacher_a.yaml``.

    Returns:
        The teacher's ``checkpoint`` and its ``accuracy`` on the ``images`` that judge it; the output folder
        also has them in ``teacher.json``.

    Raises:
        InputError: Something given cannot work.
    """
    build_teacher(config.teacher).check(config.images.size, {})
    learned_from, judged_on = split_images(config)
    folder, teacher = prepare_output_dir(config), config.teacher
    with open_run(config, folder, config.name) as run:
        if not teacher_checkpoint(folder, teacher.name).exists():
            teach_all(run, [teacher], learned_from, folder)
        taught = with_checkpoint(teacher, teacher_checkpoint(folder, teacher.name))
        result = _judge(config, taught, judged_on, run.display)
        if result["accuracy"] is not None:
            run.tracker.log_metrics({"evaluate/accuracy": result["accuracy"]})
    write_json(folder / "teacher.json", result)
    return result


def _judge(config: TeachConfig, teacher: TeacherConfig, images: ImageSet, display: Display) -> dict[str, Any]:
    work = Evaluation(
        images=images.config,
        source=images.source,
        ids=images.ids,
        label_sets=LabelSets({teacher.name: teacher.classes}),
        teachers=[teacher],
        students={},
        pools=pools_of(config),
        only_classes=frozenset(teacher.classes),
    )
    with display.images("evaluate", len(images.ids)) as on_images:
        counts, summary = evaluate_images(work, on_images)
    accuracy = accuracies(counts[TEACHERS_ALONE], [teacher.name])["per_teacher"][teacher.name]["teacher"]
    return {
        "teacher": teacher.name,
        "checkpoint": str(teacher.checkpoint),
        "accuracy": accuracy,
        "images": summary["images"],
    }
