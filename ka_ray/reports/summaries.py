"""What passes over images write about themselves, as typed models: a JSON file each."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ka_ray.errors import InputError
from ka_ray.reports.sections import Accuracy, ActorPlacement, CurvePoint
from ka_ray.storage.files import read_json, write_json


class Summary(BaseModel):
    """A JSON file of the output folder: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a summary.

        Raises:
            InputError: The file was written by another version of ka_ray.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise InputError(
                f"{path} was written by another version of ka_ray ({key}: {problem['msg']}); "
                "give another --output, or the folder of a run of this version"
            ) from None

    def save(self, path: Path) -> None:
        """Write the summary in one atomic step."""
        write_json(path, self.model_dump(mode="json"))


class PassSummary(Summary):
    """A pass over images.

    Attributes:
        images: The number of images that the pass covered.
        seconds: How long the pass took.
        unreadable: The names of the images that could not be read.
        placements: Where the actors of the teachers ran.
    """

    images: int
    seconds: float
    unreadable: list[str]
    placements: list[ActorPlacement]


class ExtractionSummary(PassSummary):
    """A pass that stored features or scores.

    Attributes:
        bytes: The size of the stored files.
        passes: How many passes it took; more than one if workers were lost.
        resumed: The number of images that an earlier attempt had stored.
        duplicate_rows: The number of rows that were removed because they were stored twice.
        damaged: The names of the files that were removed because they could not be read.
        shards: The names of the stored files.
    """

    bytes: int
    passes: int
    resumed: int
    duplicate_rows: int
    damaged: list[str]
    shards: list[str]


class ReductionSummary(PassSummary):
    """A pass that kept only sums.

    Attributes:
        bytes: The size of the sums of one reducer.
        reducers: The number of reducers.
        shards: The names of stored files; empty.
    """

    bytes: int
    reducers: int
    shards: list[str] = []


class EvaluationSummary(PassSummary):
    """The evaluation of a student.

    Attributes:
        accuracy: How good the student is.
        confusion: The number of images of each class (row) that the student took for each class (column).
        curve: The student after each epoch of joint learning; empty if these were not kept.
    """

    accuracy: Accuracy
    confusion: list[list[int]]
    curve: list[CurvePoint]
