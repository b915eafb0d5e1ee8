"""The image source of Hugging Face datasets that were saved by ``save_to_disk``.

Read by ``datasets.load_from_disk``, the library's own loader: it maps the Arrow files into memory instead of
reading them, and keeps the order of the rows. Not ``ray.data.from_huggingface``: it yields blocks without the
numbers of their rows, and an image's id is its row number.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ka_ray.config import DatasetsImages
from ka_ray.config.source_kind import SAVED_SPLITS, SAVED_STATE
from ka_ray.errors import InputError
from ka_ray.images.cells import read_cells, to_label
from ka_ray.images.identity import Identities, identify
from ka_ray.images.sources import Chunk, EncodedImage, Source, list_no_labels
from ka_ray.storage.files import is_remote, read_text

CHUNK_IMAGES = 64
"""Number of images per chunk: their encoded files are in memory at the same time."""

NO_LABEL = -1
"""What Hugging Face's ClassLabel holds for rows without a label, such as those of a test split."""


def list_saved_dataset(config: DatasetsImages) -> Source:
    """List the rows of a saved dataset; no image is read.

    Args:
        config: The config's ``images`` section.

    Raises:
        InputError: ``datasets`` is not installed, the folder is not a saved dataset, or has no such split or
            column.
    """
    folder = str(_find_dataset(config))
    features: Mapping[str, Any] = _load(folder).features
    image_column = _find_image_column(config, features)
    label_column = config.label_column
    if label_column is not None and label_column not in features:
        raise InputError(
            f"images.label_column: {folder} has no column {label_column!r}; it has {[*features]}"
        )
    feature: Any = features[label_column] if label_column is not None else None
    has_class_label = type(feature).__name__ == "ClassLabel"
    classes = config.classes or (tuple(map(to_label, feature.names)) if has_class_label else None)
    if getattr(feature, "dtype", "string") not in ("string", "large_string") and classes is None:
        raise InputError(
            f"images.classes: column {label_column!r} of {folder} holds {feature}, not text; set "
            "images.classes to the list of class names that these labels are indices into"
        )
    reader = SavedDatasetReader(folder, image_column, label_column, classes, has_class_label)
    # The fingerprint changes with the rows, and is part of the source's digest.
    fingerprint = str(json.loads(read_text(Path(folder, SAVED_STATE))).get("_fingerprint"))
    num_rows = len(reader.open(fingerprint))
    starts = range(0, num_rows, CHUNK_IMAGES)
    chunks = [Chunk(i, min(CHUNK_IMAGES, num_rows - i), (folder, fingerprint)) for i in starts]
    if not chunks:
        raise InputError(f"images.path: the dataset {folder} has no rows")
    names = classes if label_column is not None else None
    return Source(chunks, reader, names, "", reader.list_labels, identify_rows)


def identify_rows(chunk: Chunk) -> Identities:
    """Identify rows by their numbers; with another fingerprint of the dataset, all rows are other images."""
    folder, fingerprint = chunk.payload
    return identify([(f"{folder} {chunk.first_id}", fingerprint, -1)], [chunk.num_images])


def _find_dataset(config: DatasetsImages) -> Path:
    """Return the folder of the Dataset, which for a DatasetDict is the split's."""
    path = config.path
    if is_remote(path):
        raise InputError(
            f"images.path: {path}: a dataset saved by save_to_disk is mapped into memory, which needs a "
            "local folder; copy it to where every node reaches it, or write it with to_parquet and set "
            "source to parquet"
        )
    if (path / SAVED_SPLITS).is_file():
        try:
            splits = list(json.loads(read_text(path / SAVED_SPLITS))["splits"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"images.path: {path / SAVED_SPLITS} is damaged: {error!r}") from None
        if config.split not in splits:
            raise InputError(
                f"images.split: {path} is a DatasetDict with the splits {splits}; set split to one of them"
            )
        return path / str(config.split)
    if not (path / SAVED_STATE).is_file():
        raise InputError(
            f"images.path: {path} holds neither {SAVED_STATE} nor {SAVED_SPLITS}, so save_to_disk has not "
            "written it"
        )
    if config.split is not None:
        raise InputError(f"images.split: {path} is a single Dataset, which has no splits; leave out split")
    return path


def _load(folder: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(
            "images.source: datasets needs a package that is not installed: pip install 'ka_ray[hf]'"
        ) from None
    try:
        return datasets.load_from_disk(folder)
    except Exception as error:  # the library raises many types for damaged files
        raise InputError(f"images.path: the dataset {folder} cannot be opened: {error}") from None


def _find_image_column(config: DatasetsImages, features: Mapping[str, Any]) -> str:
    """Return the column of images: the one that the config names, or the only one whose type is Image."""
    found = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if config.image_column is None:
        if len(found) != 1:
            raise InputError(
                f"images.image_column: {config.path} has {len(found)} columns of images; set image_column to "
                f"one of its columns {[*features]}"
            )
        return found[0]
    feature = features.get(config.image_column)
    if feature is None or (config.image_column not in found and getattr(feature, "dtype", "") != "binary"):
        raise InputError(
            f"images.image_column: {config.path} has no column {config.image_column!r} of images (Image or "
            f"binary); its columns of images are {found}, and it has {[*features]}"
        )
    return config.image_column


@dataclass(frozen=True)
class SavedDatasetReader:
    """Reads rows of a saved dataset; an object and not a closure, because it is pickled for workers.

    Attributes:
        folder: The folder of the Dataset.
        image_column: Name of the column of images.
        label_column: Name of the column of labels; None if the images are unlabelled.
        classes: Names of the classes, into which integer labels are indices; None if the labels are names.
        has_class_label: Whether the labels are Hugging Face's ClassLabel, in which -1 means no label.
    """

    folder: str
    image_column: str
    label_column: str | None
    classes: tuple[str, ...] | None
    has_class_label: bool

    def open(self, fingerprint: str) -> Any:
        """Return the dataset with only the columns that are read; opened once per process.

        Args:
            fingerprint: The fingerprint of its rows; if it changes, the dataset is opened again.
        """
        return _open_columns(self.folder, fingerprint, self.image_column, self.label_column)

    def list_labels(self, chunks: Sequence[Chunk]) -> list[str]:
        """Return the labels of the rows of chunks."""
        if self.label_column is None:
            return list_no_labels(chunks)
        column = self.open(chunks[0].payload[1]).select_columns([self.label_column])
        ids = [chunk.first_id + i for chunk in chunks for i in range(chunk.num_images)]
        return [self._label(value) for value in column[ids][self.label_column]]

    def _label(self, value: Any) -> str:
        is_missing = self.has_class_label and value == NO_LABEL
        return to_label(None if is_missing else value, self.classes)

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
        """Yield the wanted rows of a chunk."""
        ids = [i for i in range(chunk.first_id, chunk.first_id + chunk.num_images) if wanted(i)]
        rows = self.open(chunk.payload[1])[ids]  # column -> values
        labels = rows[self.label_column] if self.label_column is not None else [None] * len(ids)
        contents = read_cells(rows[self.image_column], self.folder)
        for image_id, label, content in zip(ids, labels, contents, strict=True):
            yield EncodedImage(image_id, f"{self.folder}, row {image_id}", content, self._label(label))


@lru_cache(maxsize=8)
def _open_columns(folder: str, fingerprint: str, image_column: str, label_column: str | None) -> Any:
    import datasets

    columns = [image_column] if label_column is None else [image_column, label_column]
    # A dataset can be saved with a format such as "torch", in which it would return tensors.
    dataset = _load(folder).with_format(None).select_columns(columns)
    if type(dataset.features[image_column]).__name__ == "Image":
        # Encoded, as they are stored: the rules of images.decoding hold for every source.
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset
