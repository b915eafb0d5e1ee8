"""The kinds of sources of the `images` section: where images come from."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ka_ray.config.base import ClassNames, ExistingPath, Section
from ka_ray.config.decoding import Decoding
from ka_ray.config.job_paths import ClusterContext, is_absolute
from ka_ray.config.ranges import Count, CountOrZero, Text
from ka_ray.config.shorthands import accept_without

NOBODY = "nobody"
"""The owner of images that show no teacher's classes; no teacher may have this name."""

LABELS = "Column of class names, or of integers into `classes`; null: no labels."
OWNERS = "Column of names of the teachers whose classes the images show, or nobody; empty: not known."
INDEXED_NAMES = "Class names of integer labels: a list, or a file: one name per line, or JSON."


class Images(Section):
    """The keys that all sources share."""

    model_config = ConfigDict(json_schema_extra=accept_without("size"))  # a part has that of its mixture

    size: int = Field(
        ge=4,
        le=4096,
        description="Height and width, in pixels, for networks whose preprocessing names no size.",
    )
    resize: Literal["squash", "crop"] = Field(
        "crop",
        description="For the same networks. crop: scale the shorter side and cut out the centre; squash: "
        "scale both sides to size.",
    )
    decoding: Decoding = Field(Decoding(), description="How image files become RGB pixels.")
    limit: Count | None = Field(
        None, description="Number of images to use, chosen at random by the seed; null: all."
    )
    max_unreadable: CountOrZero = Field(
        0, description="Number of unreadable images to skip and list; more end the run."
    )

    owner: Text | None = Field(
        None,
        description="Name of the teacher whose classes all of these images show, for `scores.gate`; nobody: "
        "they show no teacher's classes, and the student does not learn from them; null: not known.",
    )

    @property
    def has_labels(self) -> bool:
        """Whether the images come with the names of their classes."""
        return True

    @property
    def has_owners(self) -> bool:
        """Whether it is known of some images which teacher's classes they show."""
        return self.owner is not None

    @property
    def has_owner_column(self) -> bool:
        """Whether a column, which is read with the images, may name owners of some of them."""
        return False

    @property
    def are_nobodys(self) -> bool:
        """Whether the config says that all of these images show no teacher's classes."""
        return self.owner == NOBODY

    @property
    def named_owners(self) -> frozenset[str]:
        """Names of owners in the config; a column of owners is not read for it."""
        return frozenset() if self.owner is None else frozenset({self.owner})


class DigitsImages(Images):
    """scikit-learn's 1,797 scans of handwritten digits, 8x8; classes ``digit_0`` ... ``digit_9``."""

    source: Literal["digits"] = Field(description="The kind of source.")
    size: int = Field(
        8,
        ge=4,
        le=4096,
        description="Height and width, in pixels, for networks whose preprocessing names no size.",
    )
    split: Literal["train", "test", "all"] = Field("train", description="test: every fifth image.")


class FolderImages(Images):
    """Image files: one folder per class (torchvision's ``ImageFolder`` layout), or unlabelled in any tree."""

    source: Literal["folder"] = Field(description="The kind of source.")
    path: ExistingPath = Field(description="The folder.")
    labelled: bool = Field(True, description="true: folder names are classes; false: they mean nothing.")

    @property
    def has_labels(self) -> bool:
        """Whether the names of the folders are classes."""
        return self.labelled


class _TableImages(Images):
    """Images that a table lists, one in each row."""

    label_column: Text | None = Field(None, description=LABELS)
    owner_column: Text | None = Field(None, description=OWNERS)
    classes: ClassNames | None = Field(None, description=INDEXED_NAMES)

    @property
    def has_labels(self) -> bool:
        """Whether a column holds classes."""
        return self.label_column is not None

    @model_validator(mode="after")
    def _has_one_kind_of_owner(self) -> Self:
        if self.owner is not None and self.owner_column is not None:
            raise ValueError("give either owner, for all images, or owner_column")
        return self

    @property
    def has_owners(self) -> bool:
        """Whether all images or a column name the teachers whose classes the images show."""
        return self.owner is not None or self.has_owner_column

    @property
    def has_owner_column(self) -> bool:
        """Whether a column names owners."""
        return self.owner_column is not None


class ParquetImages(_TableImages):
    """Parquet files with one encoded image (JPEG, PNG, ...) per row."""

    source: Literal["parquet"] = Field(description="The kind of source.")
    path: ExistingPath = Field(description="A file, or a folder of files.")
    files: Text = Field("*.parquet", description="Which files of the folder: a glob pattern.")
    image_column: Text = Field("image", description="Encoded bytes, or a struct of `bytes` and `path`.")


class ListImages(_TableImages):
    """Image files whose paths are listed in a CSV, TSV, Parquet or text file."""

    source: Literal["list"] = Field(description="The kind of source.")
    path: ExistingPath = Field(
        description="The list: .csv or .tsv with a header, .parquet, or .txt with one path per line."
    )
    path_column: Text = Field("path", description="Column of paths and URIs; not used for .txt.")
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


class DatasetsImages(Images):
    """A dataset of Hugging Face's ``datasets`` that was saved by ``save_to_disk``."""

    source: Literal["datasets"] = Field(description="The kind of source.")
    path: ExistingPath = Field(description="The folder that save_to_disk has written.")
    split: Text | None = Field(None, description="Which split of a DatasetDict; null: a single Dataset.")
    image_column: Text | None = Field(None, description="Column of images; null: the only one.")
    label_column: Text | None = Field(
        None, description="Column of ClassLabel, class names, or integers into `classes`; null: no labels."
    )
    classes: ClassNames | None = Field(
        None, description=f"{INDEXED_NAMES} null: those of the ClassLabel feature."
    )

    @property
    def has_labels(self) -> bool:
        """Whether a column holds classes."""
        return self.label_column is not None


class WebDatasetImages(Images):
    """Tar shards as WebDataset reads them: files with the same name up to the first dot are one sample."""

    source: Literal["webdataset"] = Field(description="The kind of source.")
    path: ExistingPath = Field(description="A tar file, or a folder of them.")
    files: Text = Field("*.tar", description="Which files of the folder: a glob pattern.")
    image_key: Text | None = Field(
        None, description="Extension of the image, such as `jpg` or `jpg;png`; null: the only image."
    )
    label_key: Text | None = Field(
        None, description="Extension of the label, such as `cls`, or `json.NAME`: an entry of it; null: none."
    )
    classes: ClassNames | None = Field(None, description=INDEXED_NAMES)

    @property
    def has_labels(self) -> bool:
        """Whether samples have a label."""
        return self.label_key is not None


class TorchvisionImages(Images):
    """A dataset of ``torchvision.datasets`` whose files are on disk; nothing is downloaded."""

    source: Literal["torchvision"] = Field(description="The kind of source.")
    dataset: Text = Field(description="Name of a class of torchvision.datasets, such as CIFAR10.")
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
