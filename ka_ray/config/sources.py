"""Where images come from."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from ka_ray.config.base import ClassNames, ExistingPath, Section


class _Images(Section):
    size: int = Field(ge=4, description="Sides of the decoded image in pixels; images are made square.")
    resize: Literal["squash", "crop"] = Field(
        "crop",
        description="crop: scale the shorter side, cut the centre; squash: scale both sides to size.",
    )
    limit: int | None = Field(None, ge=1, description="Use this many images, chosen at random by the seed.")
    max_unreadable: int = Field(0, ge=0, description="Skip (and name) up to this many unreadable images.")

    @property
    def has_labels(self) -> bool:
        """Whether the images come with the names of their classes."""
        return True


class DigitsImages(_Images):
    """scikit-learn's 1,797 scans of handwritten digits, 8x8; classes ``digit_0`` ... ``digit_9``."""

    source: Literal["digits"]
    size: int = Field(8, ge=4, description="Sides of the decoded image in pixels.")
    split: Literal["train", "test", "all"] = Field("train", description="test: every fifth image.")


class FolderImages(_Images):
    """Image files: one folder a class (torchvision's ``ImageFolder`` layout), or unlabelled in any tree."""

    source: Literal["folder"]
    path: ExistingPath
    labelled: bool = Field(True, description="false: any folder tree, the folders' names mean nothing.")

    @property
    def has_labels(self) -> bool:
        """Whether the folders' names are classes."""
        return self.labelled


class ParquetImages(_Images):
    """Parquet with one encoded image (JPEG, PNG, ...) a row."""

    source: Literal["parquet"]
    path: ExistingPath = Field(description="A file, or a folder of files.")
    files: str = Field("*.parquet", description="Which files of the folder: a glob pattern.")
    image_column: str = Field("image", description="Encoded bytes, or a struct with a `bytes` field.")
    label_column: str | None = Field(None, description="Class names, or integers into `classes`.")
    classes: ClassNames | None = Field(
        None, description="The names behind integer labels: list or text file."
    )

    @property
    def has_labels(self) -> bool:
        """Whether a column holds classes."""
        return self.label_column is not None


def _as_the_whole(part: Any, info: ValidationInfo) -> Any:
    """Give a part of a mixture the size, resizing and patience of the whole, which it may leave out."""
    given = part.model_dump(exclude_unset=True) if isinstance(part, _Images) else part
    if not isinstance(given, dict):
        return given
    whole = {key: info.data[key] for key in ("size", "resize", "max_unreadable") if key in info.data}
    for key, value in whole.items():
        if key in given and given[key] != value:
            raise ValueError(
                f"{key} = {given[key]} differs from {value}, that of the whole; set {key} on the whole alone"
            )
    return {"size": 8} | given | whole  # 8: where the whole's size is wrong, that alone is the complaint


Part = Annotated[
    DigitsImages | FolderImages | ParquetImages,
    Field(discriminator="source"),
    BeforeValidator(_as_the_whole),
]
"""A source that a mixture may hold."""


def _two_or_more(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    if len(parts) < 2:  # pydantic's min_length would not count the parts that have mistakes
        raise ValueError(f"at least two sources are needed to mix, there are {len(parts)}")
    return parts


class MixedImages(_Images):
    """Several sources read as one, part after part; a label that two parts use is one class.

    A part's own ``limit`` chooses among its images, the same ones whatever the seed; the ``limit`` of the
    whole then chooses among all of them.
    """

    source: Literal["mixed"]
    parts: Annotated[tuple[Part, ...], AfterValidator(_two_or_more)] = Field(
        description="At least two plain sources; each gets size, resize and max_unreadable of the whole."
    )

    @property
    def has_labels(self) -> bool:
        """Whether all parts have classes."""
        return all(part.has_labels for part in self.parts)


ImagesConfig = Annotated[
    DigitsImages | FolderImages | ParquetImages | MixedImages, Field(discriminator="source")
]
