"""Tell the tracker what a run read, and what came of it, beside parameters, metrics and files."""

from hashlib import blake2b
from typing import Literal

from ka_ray.config import MixedImages, Preprocessing
from ka_ray.images.split import ImageSet
from ka_ray.reports.card import describe_run, write_card
from ka_ray.reports.report import Report
from ka_ray.reports.sections import Accuracy
from ka_ray.reports.verdict import judge
from ka_ray.runs.context import Run
from ka_ray.runs.origin import find_commit, list_versions
from ka_ray.runs.output_folder import DIGESTS
from ka_ray.storage.files import exists, read_json
from ka_ray.student import Student
from ka_ray.teachers.sources.description import describe_preprocessing
from ka_ray.tracking import Tracker
from ka_ray.tracking.records import StudentVersion, TrackedImages

MAX_NAME_CHARS = 200
"""The name of a source is cut to so many characters; MLflow takes 500."""

DIGEST_BYTES = 8
"""Size of a digest of a list of images; MLflow shows it in its tables."""


def track_inputs(run: Run) -> None:
    """Log which images, teachers, versions and code a run uses.

    Args:
        run: The run, which has just started; its teachers have weights.
    """
    track_images(run.tracker, run.training_images, run.evaluation_images)
    tags = {f"version.{library}": version for library, version in list_versions().items()}
    tags |= {f"teacher.{name}": digest for name, digest in _read_digests(run).items()}
    commit = find_commit()
    run.tracker.log_tags(tags | ({"commit": commit} if commit else {}))


def track_images(tracker: Tracker, training: ImageSet, evaluation: ImageSet) -> None:
    """Log the images that a command uses.

    Args:
        tracker: The tracker of the run.
        training: The training images.
        evaluation: The evaluation images.
    """
    tracker.log_images(_describe_images("training", training))
    tracker.log_images(_describe_images("evaluation", evaluation))


def track_result(run: Run, report: Report, student: Student) -> None:
    """Log what a run has found, and its student, which becomes a version of a registered model.

    Args:
        run: The run.
        report: Its report.
        student: Its student.
    """
    config, tracker, verdict = run.config, run.tracker, judge(report.accuracy)
    tracker.describe(describe_run(report))
    tags: dict[str, str] = {"method": report.method, "verdict": verdict.grade}
    tags |= {"start": report.start.source} if report.start is not None else {}
    tags |= {"gate": report.gate.used} if report.gate is not None else {}
    tracker.log_tags(tags)
    tracker.log_warnings(report.warnings)
    tracker.log_student(student)
    pixels = describe_preprocessing(Preprocessing.model_validate(dict(student.spec.preprocessing)))
    measure, value = _find_measure(report.accuracy)
    judged_on = digest_images(run.evaluation_images)
    if measure == "agreement":  # with these teachers and no others
        judged_on = "-".join([judged_on, *sorted(_read_digests(run).values())])
    name, card = config.tracking.model or config.name, write_card(report, pixels)
    tracker.register_student(StudentVersion(name, card, measure, value, judged_on), run.notify)


def digest_images(images: ImageSet) -> str:
    """Return a digest of a list of images: of where they are, of their sizes and of their labels."""
    identities = images.source.identities.take(images.ids)
    words = identities.places.tobytes() + identities.stamps.tobytes()
    return blake2b(words, digest_size=DIGEST_BYTES).hexdigest()


def _describe_images(purpose: Literal["training", "evaluation"], images: ImageSet) -> TrackedImages:
    config = images.config
    parts = config.parts if isinstance(config, MixedImages) else (config,)
    paths = [getattr(part, "path", None) for part in parts]
    sources = [str(path or part.source) for path, part in zip(paths, parts, strict=True)]
    names = [path.name if path else part.source for path, part in zip(paths, parts, strict=True)]
    name = ", ".join(names)[:MAX_NAME_CHARS]
    return TrackedImages(purpose, name, "; ".join(sources), digest_images(images), len(images.ids))


def _find_measure(accuracy: Accuracy) -> tuple[Literal["union", "agreement", ""], float]:
    """Return what a student is judged by, and its value."""
    if accuracy.union is not None:
        return "union", accuracy.union
    return ("agreement", accuracy.agreement) if accuracy.agreement is not None else ("", 0.0)


def _read_digests(run: Run) -> dict[str, str]:
    """Return the digests of the checkpoints of all teachers."""
    path = run.folder / DIGESTS
    return {name: str(value) for name, value in read_json(path).items()} if exists(path) else {}
