"""`ka-ray evaluate`: evaluate a finished student on labelled images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ka_ray.config import ExtractConfig, ImagesConfig, PlacementConfig, RayConfig, load_images
from ka_ray.distributed.cluster import choose_resources, connect
from ka_ray.distributed.evaluate import Evaluation, evaluate_images
from ka_ray.distributed.placement import Workload
from ka_ray.distributed.resources import Pools
from ka_ray.errors import InputError
from ka_ray.images import open_source, sample_ids
from ka_ray.reports.accuracy import measure_accuracy
from ka_ray.reports.sections import Accuracy
from ka_ray.storage.files import absolute
from ka_ray.storage.uris import to_path
from ka_ray.student import load_student
from ka_ray.terminal.progress import Display


def evaluate(folder: str | Path, images: ImagesConfig, ray: RayConfig | None = None) -> Accuracy:
    """Evaluate a finished student on labelled images. Only the run's folder is needed, not the teachers.

    Args:
        folder: The output folder of a finished run.
        images: Config of the labelled images. Images of classes that the student does not know are skipped.
        ray: How to connect to Ray; None connects to ``RAY_ADDRESS`` if it is set, and otherwise starts Ray on
            this machine.

    Returns:
        The ``accuracy`` section of a report; values that need the teachers are None.

    Raises:
        InputError: The folder holds no student, or the student knows none of the images' classes.
    """
    student = load_student(folder)
    source = open_source(images)
    ids = sample_ids(source.num_images, images.limit, seed=0)
    if source.class_names is not None and not set(source.class_names) & set(student.spec.classes):
        raise InputError(
            f"the student knows none of the images' classes {list(source.class_names)[:10]}; "
            f"it knows {list(student.spec.classes)[:10]}"
        )
    students = {"student": absolute(to_path(folder))}
    config, extract = ray or RayConfig(), ExtractConfig()
    with (
        Display() as display,
        connect(config) as cluster,
        display.track_images("evaluate", len(ids)) as on_images,
    ):
        workload = Workload(num_teachers=0, extract=extract, ray=config)
        resources = choose_resources(PlacementConfig(), workload, cluster)
        pools = Pools(extract, resources.placement, config.max_failures)
        label_sets = student.spec.unified_label_sets
        evaluation = Evaluation(images, source, ids, label_sets, [], students, pools)  # [] teachers
        counts, _ = evaluate_images(evaluation, on_images)
    return measure_accuracy(counts["student"], list(student.spec.label_sets))


def build_images_config(folder: str | Path, source: str, overrides: Sequence[str] = ()) -> ImagesConfig:
    """Build the config of an image source, whose images are decoded and resized as for a student's training.

    Args:
        folder: The output folder of a finished run; its student is read.
        source: ``digits``, or the path of a Parquet file, a folder of Parquet files or a folder of images.
        overrides: Items ``key=value`` that override keys of the image source, e.g. ``label_column=label``.

    Returns:
        The config of the image source.

    Raises:
        InputError: The path does not exist, or an override has an unknown key or a wrong value.
    """
    spec, path = load_student(folder).spec, to_path(source)
    tree: dict[str, Any] = {"size": spec.image_size, "resize": spec.resize, "source": "folder"}
    if source == "digits":
        tree |= {"source": "digits", "split": "test"}
    else:
        is_parquet = path.suffix == ".parquet" or any(path.glob("*.parquet"))
        tree |= {"path": source, "source": "parquet" if is_parquet else "folder"}
    return load_images(tree, overrides)
