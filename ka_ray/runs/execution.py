"""Run work on the cluster with a run's resources, and show its progress."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ka_ray.config import ScoresConfig, TeacherConfig
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.failures import unwrap
from ka_ray.distributed.resources import pools_of
from ka_ray.distributed.train import Work, WorkerGroup, train_in_workers
from ka_ray.features.store import DONE
from ka_ray.images.split import ImageSet
from ka_ray.runs.context import RunContext
from ka_ray.teachers.reading import ReadSpec
from ka_ray.training.fit import Progress

NO_TEACHERS = ReadSpec({}, {}, ScoresConfig())
"""What is read where images are stored without passing through teachers."""


def is_stored(folder: Path) -> bool:
    """Return whether a pass over images has finished in a folder."""
    return (folder / DONE).exists()


def store_images(
    run: RunContext,
    images: ImageSet,
    folder: Path,
    row_bytes: int,
    teachers: Sequence[TeacherConfig] = (),
    read_spec: ReadSpec = NO_TEACHERS,
    classes: frozenset[str] | None = None,
) -> None:
    """Stream images through teachers into a folder, unless it is finished.

    Args:
        run: The run.
        images: The images to store.
        folder: Gets one row per image: the image, its label and what is read of the teachers.
        row_bytes: Estimated size of one row, in bytes.
        teachers: The teachers in stacking order; empty to store images and labels only.
        read_spec: Which features and scores of the teachers are stored.
        classes: Keep only images with these labels; None keeps all.
    """
    if is_stored(folder):
        return
    work = Extraction(images, folder, row_bytes, classes)
    with run.track_images("extract" if teachers else "read", len(images.ids)) as on_images:
        extract_features(work, teachers, pools_of(run.config, run.resources.placement), read_spec, on_images)


def train(run: RunContext, what: str, work: Work) -> None:
    """Run training code in the run's group of workers, or in this process if the run has no workers.

    Args:
        run: The run; its resources say how many workers, and what each gets.
        what: What the code does, for the user.
        work: Runs in every worker.
    """
    resources = run.resources
    with run.timeline.step(what):
        if resources.ray.workers == 0:
            run.notify(f"{what}: in this process")
            return _train_here(run, work)
        run.notify(f"{what}: starting {resources.ray.workers_text}")
        group = WorkerGroup(resources.ray, resources.placement.trainers, run.folder, run.config.name)
        return train_in_workers(work, group, run.report_epoch, run.notify)


def _train_here(run: RunContext, work: Work) -> None:
    """Run training code in this process, with the threads of its share of the machine.

    These are never more than torch would use by itself: the cores, or fewer if OMP_NUM_THREADS says so.
    """
    share, errors, threads = run.resources.placement.trainers, list[Exception](), torch.get_num_threads()

    def report(progress: Progress) -> None:
        try:
            run.report_epoch(progress)
        except Exception as error:  # as in workers: an unreachable tracker must not end hours of training
            errors.append(error)

    torch.set_num_threads(max(1, min(threads, round(share.cpu))))
    try:
        work(torch.device("cuda", 0) if share.gpu else torch.device("cpu"), report)
    except Exception as error:
        raise unwrap(error) from error  # as in workers: a full disk or GPU has one message
    finally:
        torch.set_num_threads(threads)
        if share.gpu:
            torch.cuda.empty_cache()  # the evaluation uses the same GPU
    if errors:
        raise errors[0]
