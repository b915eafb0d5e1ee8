"""The `images` section: where images come from."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from ka_ray.config.base import ClassNames, ExistingPath, Section
from ka_ray.config.decoding import Decoding
from ka_ray.config.job_paths import ClusterContext, is_absolute

LABELS = "Column of class names, or of integers into `classes`; null: no labels."
INDEXED_NAMES = "Class names of integer labels: a list, or a file: one name per line, or JSON."


class _Images(Section):
    size: int = Field(
        ge=4, description="Height and width, in pixels, for networks whose preprocessing names no size."
    )
    resize: Literal["squash", "crop"] = Field(
        "crop",
        description="For the same networks. crop: scale the shorter side and cut out the centre; squash: "
        "scale both sides to size.",
    )
    decoding: Decoding = Field(Decoding(), description="How image files become RGB pixels.")
    limit: int | None = Field(
        None, ge=1, description="Number of images to use, chosen at random by the seed; null: all."
    )
    max_unreadable: int = Field(
        0, ge=0, description="Number of unreadable images to skip and list; more end the run."
    )

    @property
    def has_labels(self) -> bool:
        """Whether the images come with the names of their classes."""
        return True


class DigitsImages(_Images):
    """scikit-learn's 1,797 scans of handwritten digits, 8x8; classes ``digit_0`` ... ``digit_9``."""

    source: Literal["digits"] = Field(description="The kind of source.")
    size: int = Field(
        8, ge=4, description="Height and width, in pixels, for networks whose preprocessing names no size."
    )
    split: Literal["train", "test", "all"] = Field("train", description="test: every fifth image.")


class FolderImages(_Images):
    """Image files: one folder per class (torchvision's ``ImageFolder`` layout), or unlabelled in any tree."""

    source: Literal["folder"] = Field(description="The kind of source.")
    path: ExistingPath = Field(description="The folder.")
    labelled: bool = Field(True, description="true: folder names are classes; false: they mean nothing.")

    @property
    def has_labels(self) -> bool:
        """Whether the names of the folders are classes."""
        return self.labelled


class ParquetImages(_Images):
    """Parquet files with one encoded image (JPEG, PNG, ...) per row."""

    source: Literal["parquet"] = Field(description="The kind of source.")
    path: ExistingPath = Field(description="A file, or a folder of files.")
    files: str = Field("*.parquet", description="Which files of the folder: a glob pattern.")
    image_column: str = Field("image", description="Encoded bytes, or a struct of `bytes` and `path`.")
    label_column: str | None = Field(None, description=LABELS)
    classes: ClassNames | None = Field(None, description=INDEXED_NAMES)

    @property
    def has_labels(self) -> bool:
        """Whether a column holds classes."""
        return self.label_column is not None


class ListImages(_Images):
    """Image files whose paths are listed in a CSV, TSV, Parquet or text file."""

    source: Literal["list"] = Field(description="The kind of source.")
    path: ExistingPath = Field(
        description="The list: .csv or .tsv with a header, .parquet, or .txt with one path per line."
    )
    path_column: str = Field("path", description="Column of paths and URIs; not used for .txt.")
    label_column: str | None = Field(None, description=LABELS)
    classes: ClassNames | None = Field(None, description=INDEXED_NAMES)
    root: ExistingPath | None = Field(
        None, description="Folder from which relative paths count; null: the folder of the list."
    )

    @model_validator(mode="before")
    @classmethod
    def _root_is_sent_with_a_job(cls, tree: Any, info: ValidationInfo) -> Any:
        given = tree if isinstance(tree, dict) else {}
        path = str(given.get("path", "/"))
        if isinstance(info.context, ClusterContext) and given.get("root") is None and not is_absolute(path):
            raise ValueError(
                f"set root, too: the list {path} is sent with the job, and so is root, the folder of its "
                "relative paths; if all of its paths are absolute or URIs, set root to /"
            )
        return tree

    @property
    def has_labels(self) -> bool:
        """Whether a column holds classes."""
        return self.label_column is not None


class DatasetsImages(_Images):
    """A dataset of Hugging Face's ``datasets`` that was saved by ``save_to_disk``."""

    source: Literal["datasets"] = Field(description="The kind of source.")
    path: ExistingPath = Field(description="The folder that save_to_disk has written.")
    split: str | None = Field(None, description="Which split of a DatasetDict; null: a single Dataset.")
    image_column: str | None = Field(None, description="Column of images; null: the only one.")
    label_column: str | None = Field(
        None, description="Column of ClassLabel, class names, or integers into `classes`; null: no labels."
    )
    classes: ClassNames | None = Field(
        None, description=f"{INDEXED_NAMES} null: those of the ClassLabel feature."
    )

    @property
    def has_labels(self) -> bool:
        """Whether a column holds classes."""
        return self.label_column is not None


class WebDatasetImages(_Images):
    """Tar shards as WebDataset reads them: files with the same name up to the first dot are one sample."""

    source: Literal["webdataset"] = Field(description="The kind of source.")
    path: ExistingPath = Field(description="A tar file, or a folder of them.")
    files: str = Field("*.tar", description="Which files of the folder: a glob pattern.")
    image_key: str | None = Field(
        None, description="Extension of the image, such as `jpg` or `jpg;png`; null: the only image."
    )
    label_key: str | None = Field(
        None, description="Extension of the label, such as `cls`, or `json.NAME`: an entry of it; null: none."
    )
    classes: ClassNames | None = Field(None, description=INDEXED_NAMES)

    @property
    def has_labels(self) -> bool:
        """Whether samples have a label."""
        return self.label_key is not None


class TorchvisionImages(_Images):
    """A dataset of ``torchvision.datasets`` whose files are on disk; nothing is downloaded."""

    source: Literal["torchvision"] = Field(description="The kind of source.")
    dataset: str = Field(description="Name of a class of torchvision.datasets, such as CIFAR10.")
    root: ExistingPath | None = Field(None, description="The dataset's `root`: the folder with its files.")
    arguments: dict[str, Any] = Field({}, description="Other keyword arguments, such as `train: false`.")
    labelled: bool = Field(True, description="true: its targets are classes; false: they are not used.")
    classes: ClassNames | None = Field(
        None, description=f"{INDEXED_NAMES} null: those that the dataset names."
    )

    @field_validator("arguments")
    @classmethod
    def _only_describes_the_dataset(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        refused = sorted(REFUSED_ARGUMENTS & arguments.keys())
        if refused:
            raise ValueError(
                f"{', '.join(refused)} cannot be set: root is a key of its own, files are never downloaded, "
                "and images are transformed as each network's preprocessing says"
            )
        return arguments

    @property
    def has_labels(self) -> bool:
        """Whether the targets are classes."""
        return self.labelled


REFUSED_ARGUMENTS = {"root", "download", "transform", "target_transform", "transforms", "loader"}
"""Arguments of torchvision's datasets that a config may not set."""

PlainImages = (
    DigitsImages
    | FolderImages
    | ParquetImages
    | ListImages
    | DatasetsImages
    | WebDatasetImages
    | TorchvisionImages
)
"""The sources that a mixture may contain."""

SHARED_KEYS = ("size", "resize", "decoding", "max_unreadable")
"""Keys that a part of a mixture has from the mixture."""


def _inherit_from_mixture(part: Any, info: ValidationInfo) -> Any:
    """Copy the keys that all parts share with their mixture into a part, which may leave them out."""
    given = part.model_dump(exclude_unset=True) if isinstance(part, _Images) else part
    if not isinstance(given, dict):
        return given
    # Only the keys of the mixture that are valid: pydantic reports the others itself.
    inherited = {key: info.data[key] for key in SHARED_KEYS if key in info.data}
    for key, value in inherited.items():
        if key not in given:
            continue
        own = type(value).model_validate(given[key]) if isinstance(value, Section) else given[key]
        if own != value:
            raise ValueError(
                f"{key} = {given[key]} differs from {value}, the mixture's; set {key} only on the mixture"
            )
    # `size` is required. Any valid one (8) keeps a wrong size of the mixture from being reported twice.
    return {"size": 8} | given | inherited


Part = Annotated[
    PlainImages,
    Field(discriminator="source"),
    BeforeValidator(_inherit_from_mixture),
]
"""A source that a mixture may contain."""


def _two_or_more(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    if len(parts) < 2:  # pydantic's min_length would not count the parts that have mistakes
        raise ValueError(f"at least two sources are needed to mix, there are {len(parts)}")
    return parts


class MixedImages(_Images):
    """Several sources that are read as one, part after part; equal labels of two parts are one class.

    The ``limit`` of a part chooses among its images, and does not depend on the seed. The ``limit`` of the
    mixture then chooses among all of these.
    """

    source: Literal["mixed"] = Field(description="The kind of source.")
    parts: Annotated[tuple[Part, ...], AfterValidator(_two_or_more)] = Field(
        description="At least two sources; they share the mixture's size, resize, decoding, max_unreadable."
    )

    @property
    def has_labels(self) -> bool:
        """Whether all parts have classes."""
        return all(part.has_labels for part in self.parts)


ImagesConfig = Annotated[PlainImages | MixedImages, Field(discriminator="source")]
