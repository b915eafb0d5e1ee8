"""The summaries of passes over images, as typed models. Each is a JSON file in the output folder."""

from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ka_ray.errors import InputError
from ka_ray.reports.disputed import DisputedImage
from ka_ray.reports.sections import Accuracy, ActorPlacement, CurvePoint
from ka_ray.sparse_counts import SparseCounts
from ka_ray.storage.files import read_json, write_json

AnyModel = TypeVar("AnyModel", bound=BaseModel)


def read_model(kind: type[AnyModel], path: Path) -> AnyModel:
    """Read a JSON file of an output folder as a typed model.

    Args:
        kind: The class of the model.
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged, or was written by another version of ka_ray.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        # One key is enough to tell the user; the others have the same cause.
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise InputError(
            f"{path} is damaged, or was written by another version of ka_ray ({key}: {problem['msg']}); "
            "give another --output, or the folder of a run of this version"
        ) from None


class Summary(BaseModel):
    """A JSON file of the output folder. It is immutable, and it refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a summary from its file.

        Raises:
            InputError: The file is damaged, or was written by another version of ka_ray.
        """
        return read_model(cls, path)

    def save(self, path: Path) -> None:
        """Write the summary in one atomic step."""
        write_json(path, self.model_dump(mode="json"))


class PassSummary(Summary):
    """The summary of a pass over images.

    Attributes:
        images: Number of images in the pass.
        seconds: Duration of the pass, in seconds.
        unreadable: Images that could not be read and were skipped, each with the reason.
        placements: Where the actors of the teachers ran.
        work: Kind of work -> seconds of it, added up over all processes; empty in earlier versions' folders.
    """

    images: int
    seconds: float
    unreadable: list[str]
    placements: list[ActorPlacement]
    work: dict[str, float] = {}


class ExtractionSummary(PassSummary):
    """The summary of a pass that stored features or scores.

    Attributes:
        bytes: Size of the stored files, in bytes.
        passes: Number of passes until all images were stored; more than one if workers were lost.
        resumed: Number of images that an earlier attempt had stored.
        duplicate_rows: Number of rows that were removed because they were stored twice.
        damaged: Names of the files that were removed because they could not be read.
        shards: Names of the stored files.
    """

    bytes: int
    passes: int
    resumed: int
    duplicate_rows: int
    damaged: list[str]
    shards: list[str]


class ReductionSummary(PassSummary):
    """The summary of a pass that stored no features, only sums over the images.

    Attributes:
        bytes: Size of the sums that one reducer holds, in bytes.
        reducers: Number of reducers, the actors that each add up a share of the images.
        shards: Names of the stored files; always empty, because such a pass stores no features.
    """

    bytes: int
    reducers: int
    shards: list[str] = []


class Confusion(BaseModel):
    """A confusion matrix, without the pairs of classes that no image has.

    Attributes:
        true: The true class of each pair, an index, ``[N]``.
        predicted: The class that the student predicts, ``[N]``.
        images: Number of images of each pair, ``[N]``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    true: list[int]
    predicted: list[int]
    images: list[int]

    @staticmethod
    def of(counts: SparseCounts) -> "Confusion":
        """Return what is stored of counts ``[K, K]``."""
        true, predicted = (index.tolist() for index in counts.indices)
        return Confusion(true=true, predicted=predicted, images=counts.images.tolist())

    def to_counts(self, num_classes: int) -> SparseCounts:
        """Return the counts ``[K, K]``.

        Args:
            num_classes: K.
        """
        cells = np.array(self.true, np.int64) * num_classes + np.array(self.predicted, np.int64)
        return SparseCounts((num_classes, num_classes), cells, np.array(self.images, np.int64))


class EvaluationPass(PassSummary):
    """The summary of a pass that counted how students do.

    Attributes:
        learned_images: Number of evaluation images that were learned from, by their pixels.
    """

    learned_images: int = 0


class EvaluationSummary(EvaluationPass):
    """The summary of the evaluation of a student.

    Attributes:
        accuracy: Accuracies and agreement of the student.
        start: The same before any step; None if its weights were random.
        confusion: Number of images per true class and class that the student predicts.
        curve: Metrics of the student after each epoch of joint learning; empty if the students of the epochs
            were not kept.
        disputed: The most disputed images, the surest first; empty in folders of earlier versions.
    """

    accuracy: Accuracy
    start: Accuracy | None = None
    confusion: Confusion
    curve: list[CurvePoint]
    disputed: list[DisputedImage] = []

    @field_validator("confusion", mode="before")
    @classmethod
    def _read_dense(cls, value: Any) -> Any:
        """Accept the dense matrix that earlier versions wrote."""
        return Confusion.of(SparseCounts.from_dense(value)) if isinstance(value, list) else value
