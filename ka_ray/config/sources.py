"""Where images come from."""

from typing import Annotated, Literal

from pydantic import Field

from ka_ray.config.base import ClassNames, ExistingPath, Section


class _Images(Section):
    size: int = Field(ge=4, description="Sides of the decoded image in pixels; images are made square.")
    resize: Literal["squash", "crop"] = Field(
        "squash",
        description="squash: scale both sides to size; crop: scale the shorter side, cut the centre.",
    )
    limit: int | None = Field(None, ge=1, description="Use this many images, chosen at random by the seed.")
    max_unreadable: int = Field(0, ge=0, description="Skip (and name) up to this many unreadable images.")


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


ImagesConfig = Annotated[DigitsImages | FolderImages | ParquetImages, Field(discriminator="source")]
