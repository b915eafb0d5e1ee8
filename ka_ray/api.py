"""What a library user calls besides :func:`ka_ray.amalgamate`: teach, evaluate, predict, load."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ka_ray.config import ExtractConfig, ImagesConfig, RayConfig, TeachConfig, flatten, load_images
from ka_ray.display import Display
from ka_ray.distributed.cluster import Cluster, check_training_fits, connect
from ka_ray.distributed.evaluate import Evaluation, evaluate_images
from ka_ray.errors import InputError
from ka_ray.features.store import write_json
from ka_ray.images import chosen_ids, open_source
from ka_ray.images.decode import decode
from ka_ray.metrics import accuracies
from ka_ray.output import claim_output, known_run, remember_run
from ka_ray.run import report_training
from ka_ray.split import split_images
from ka_ray.steps import teach_all, with_checkpoint
from ka_ray.student import load_student
from ka_ray.tracking import open_tracker
from ka_ray.tracking.base import Tracker
from ka_ray.training.fit import Progress
from ka_ray.training.teaching import teacher_checkpoint


@dataclass(frozen=True)
class Prediction:
    """What the student says of one image."""

    path: str
    class_name: str
    probability: float


@dataclass(frozen=True)
class _Teaching:
    config: TeachConfig
    folder: Path
    cluster: Cluster
    tracker: Tracker
    display: Display

    def report(self, progress: Progress) -> None:
        report_training(self.display, self.tracker, progress)


def teach(config: TeachConfig) -> dict[str, Any]:
    """Train one teacher on the labelled images of its classes.

    Args:
        config: See ``jobs/configs/cifar10_teacher_a.yaml``.

    Returns:
        The teacher's ``checkpoint`` and its ``accuracy`` on the images that judge it; the output folder also
        has them in ``teacher.json``.
    """
    learned_from, judged_on = split_images(config)
    folder, teacher = claim_output(config), config.teacher
    with (
        Display() as display,
        connect(config.ray) as cluster,
        open_tracker(config.tracking, config.name, folder, known_run(folder)) as tracker,
    ):
        check_training_fits(config.ray, cluster)
        remember_run(folder, tracker.run_id)
        tracker.log_params(flatten(config))
        if not teacher_checkpoint(folder, teacher.name).exists():
            teach_all(_Teaching(config, folder, cluster, tracker, display), [teacher], learned_from, folder)
        taught = with_checkpoint(teacher, folder)
        work = Evaluation(
            images=judged_on.config,
            source=judged_on.source,
            ids=judged_on.ids,
            label_sets={teacher.name: teacher.classes},
            teachers=[taught],
            student=None,
            extract=config.extract,
            only_classes=frozenset(teacher.classes),
        )
        with display.images("evaluate", len(judged_on.ids)) as on_images:
            counts, _ = evaluate_images(work, on_images)
        accuracy = accuracies(counts, [teacher.name])["per_teacher"][teacher.name]["teacher"]
        if accuracy is not None:
            tracker.log_metrics({"evaluate/accuracy": accuracy})
    result = {"teacher": teacher.name, "checkpoint": str(taught.checkpoint), "accuracy": accuracy}
    write_json(folder / "teacher.json", result | {"images": counts.images})
    return result


def evaluate(folder: str | Path, images: ImagesConfig, ray: RayConfig | None = None) -> dict[str, Any]:
    """Judge a finished student on other images; needs its folder alone, not the teachers.

    Args:
        folder: Output folder of a run.
        images: Labelled images; classes that the student does not know are not counted.
        ray: Where to run.

    Returns:
        As the ``accuracy`` section of the report; what needs the teachers is None.

    Raises:
        InputError: The folder holds no student, or the images have no labels that it knows.
    """
    student = load_student(folder)
    source = open_source(images)
    ids = chosen_ids(source.num_images, images.limit, seed=0)
    if source.class_names is not None and not set(source.class_names) & set(student.spec.classes):
        raise InputError(
            f"none of the images' classes {list(source.class_names)[:10]} is known to the student, "
            f"which knows {list(student.spec.classes)[:10]}"
        )
    work = Evaluation(
        images, source, ids, student.spec.label_sets, [], Path(folder).absolute(), ExtractConfig()
    )
    with Display() as display, connect(ray or RayConfig()), display.images("evaluate", len(ids)) as on_images:
        counts, _ = evaluate_images(work, on_images)
    return accuracies(counts, list(student.spec.label_sets))


def predict(folder: str | Path, images: Sequence[str | Path]) -> list[Prediction]:
    """Name the class of image files, without Ray.

    Args:
        folder: Output folder of a run.
        images: Paths of image files.

    Returns:
        For each, the most probable class and its softmax probability among all classes.

    Raises:
        InputError: The folder holds no student, or an image cannot be read.
    """
    student = load_student(folder)
    spec, predictions = student.spec, []
    for path in map(Path, images):
        try:
            pixels = decode(path.read_bytes(), spec.image_size, "crop" if spec.resize == "crop" else "squash")
        except Exception as error:  # decoders raise many kinds; each means: this image is unreadable
            raise InputError(f"image {path} cannot be read: {error}") from None
        with torch.inference_mode():
            probabilities = student(torch.from_numpy(pixels)[None]).softmax(dim=1)[0]
        best = int(probabilities.argmax())
        predictions.append(Prediction(str(path), spec.classes[best], float(probabilities[best])))
    return predictions


def images_for(folder: str | Path, where: str, overrides: Sequence[str] = ()) -> ImagesConfig:
    """Describe images for a finished student, decoded as those that it was learned from.

    Args:
        folder: Output folder of a run.
        where: ``digits``, a Parquet file or a folder of them, or a folder of image files.
        overrides: ``key=value`` of the image source.

    Raises:
        InputError: The place does not exist, or a key cannot work.
    """
    spec, path = load_student(folder).spec, Path(where)
    tree: dict[str, Any] = {"size": spec.image_size, "resize": spec.resize, "source": "folder"}
    if where == "digits":
        tree |= {"source": "digits", "split": "test"}
    else:
        is_parquet = path.suffix == ".parquet" or any(path.glob("*.parquet"))
        tree |= {"path": where, "source": "parquet" if is_parquet else "folder"}
    return load_images(tree, overrides)


__all__ = ["Prediction", "evaluate", "images_for", "load_student", "predict", "teach"]
