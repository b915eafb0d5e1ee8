"""`ka-ray evaluate`: evaluate a finished student on labelled images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ka_ray.config import ExtractConfig, ImagesConfig, PlacementConfig, RayConfig
from ka_ray.distributed.cluster import connect
from ka_ray.distributed.error_log import log_errors
from ka_ray.distributed.evaluate import evaluate_images
from ka_ray.distributed.evaluator import Evaluation
from ka_ray.distributed.placement import Workload
from ka_ray.distributed.resource_plan import choose_resources
from ka_ray.distributed.resources import Pools
from ka_ray.errors import InputError
from ka_ray.images import open_source, sample_ids
from ka_ray.images.split import ImageSet, count_labels
from ka_ray.images.views import IMAGE
from ka_ray.reports.accuracy import measure_accuracy, with_labels
from ka_ray.reports.labels import match_labels, require_match
from ka_ray.reports.sections import Accuracy
from ka_ray.runs.learned_images import NOT_COMPARED, describe_learned_images, read_learned_digests
from ka_ray.runs.output_folder import load_finished_student
from ka_ray.storage.files import absolute, cache_folder
from ka_ray.storage.uris import to_path
from ka_ray.terminal.progress import Display
from ka_ray.terminal.streams import divert_descriptors
from ka_ray.terminal.usage import UsageMeter


def evaluate(
    folder: str | Path, images: ImagesConfig, ray: RayConfig | None = None, *, trust: bool = False
) -> Accuracy:
    """Evaluate a finished student on other images; needs only its folder, not the teachers.

    Args:
        folder: The output folder of a run.
        images: The config of labelled images. Those of unknown classes count only as ``unmatched``.
        ray: How to connect to Ray; None starts Ray on this machine, or uses ``RAY_ADDRESS``.
        trust: See :func:`ka_ray.student.load_student`.

    Returns:
        The ``accuracy`` section of a report; values that need the teachers are None.

    Raises:
        InputError: The folder holds no student, the images have no labels, or the student knows none of them.
    """
    student = load_finished_student(folder, trust=trust)
    source, classes, sets = open_source(images), student.spec.classes, student.spec.unified_label_sets
    ids = sample_ids(source.num_images, images.limit, seed=0)
    seen = ImageSet(images, source, ids, {IMAGE: student.spec.view})
    _require_labels(count_labels(seen), images, classes)
    students, config, extract = {"student": absolute(to_path(folder))}, ray or RayConfig(), ExtractConfig()
    with (
        divert_descriptors(log := cache_folder() / "evaluate.log"),  # the run's folder may be someone else's
        Display(UsageMeter()) as display,
        connect(config) as cluster,
        log_errors(log),
        display.track_images("evaluate", len(ids)) as on_images,
    ):
        _notify(display, source.note)
        placement = choose_resources(PlacementConfig(), Workload(0, extract, config), cluster).placement
        pools = Pools(extract, placement, config.max_failures, config.timeout_s)
        learned = read_learned_digests(students.values())  # those of its run, if its features are still there
        work = Evaluation(seen, sets, [], students, pools, trust=trust, learned=learned)
        counts, summary = evaluate_images(work, on_images)
        _notify(display, NOT_COMPARED if learned is None else _describe_learned(summary))
    _require_labels(summary["labels"], images, classes)  # some sources tell them only with the images
    accuracy = measure_accuracy(counts["student"], list(student.spec.label_sets))
    return with_labels(accuracy, summary["labels"], classes)


def _require_labels(counts: Mapping[str, int] | None, images: ImagesConfig, classes: Sequence[str]) -> None:
    """Refuse images without a label that is a class; without teachers, nothing else could be measured."""
    if counts is None:
        return
    match = match_labels(counts, classes)
    require_match(match, classes, "the student", "see `ka-ray evaluate --help` for how to name a column")
    if not match.matched:
        raise InputError(
            f"none of the {match.images:,} images has a label, so no accuracy can be measured"
            + ("" if images.has_labels else "; set what holds the labels, such as --set label_column=label")
        )


def _describe_learned(summary: Mapping[str, Any]) -> str:
    learned = summary["learned_images"]
    return describe_learned_images(learned, summary["images"]) if learned else ""


def _notify(display: Display, note: str) -> None:
    if note:
        display.note(note)
