"""The image source of ``torchvision.datasets`` whose files are on disk.

Read by torchvision's own classes, because only they know the files of each dataset. An image's id is its
index in the dataset, which is fixed by these files. Ray Data has a reader for PyTorch datasets
(``ray.data.from_torch``), but it reads the whole dataset in one task, and yields no indices.

Each process that reads opens the dataset once. Some datasets (CIFAR, MNIST) then hold all images in memory.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from ka_ray.config import TorchvisionImages
from ka_ray.errors import InputError
from ka_ray.images.cells import to_label
from ka_ray.images.decode import known_formats_only
from ka_ray.images.identity import Identities, hash_text, identify
from ka_ray.images.sources import Chunk, EncodedImage, Source, list_no_labels
from ka_ray.storage.files import is_remote
from ka_ray.storage.read_errors import is_fault_of_machine, read_again, to_user_error

CHUNK_IMAGES = 64
"""Number of images per chunk."""

REFUSED = ("LSUN", "LSUNClass", "VisionDataset")
"""LSUN unpickles a file that nothing verifies, which could run code; VisionDataset is abstract."""

MAX_NAMES = 8
"""Number of files that a message names."""


def list_torchvision(config: TorchvisionImages) -> Source:
    """Open a dataset and count its images; the first one is read to see what samples are.

    Args:
        config: The config's ``images`` section.

    Raises:
        InputError: There is no such dataset, its files are missing, or its samples are not images of classes.
    """
    root = None if config.root is None else str(config.root)
    if config.root is not None and is_remote(config.root):
        raise InputError(
            f"images.root: {root}: torchvision reads only local files; copy the folder to each node"
        )
    dataset = _open_dataset(config.dataset, root, json.dumps(config.arguments, sort_keys=True))
    classes = (config.classes or _class_names(dataset)) if config.labelled else None
    if config.labelled and classes is None:
        raise InputError(
            f"images.classes: torchvision's {config.dataset} gives its classes no names, or one name twice; "
            "set classes to the names of its targets 0, 1, 2, ..., or labelled: false"
        )
    reader = TorchvisionReader(config.dataset, root, json.dumps(config.arguments, sort_keys=True), classes)
    if not len(dataset):
        raise InputError(f"images.dataset: torchvision's {config.dataset} has no images")
    knows_labels = _try_first_sample(dataset, config, reader)
    where = (config.dataset, root, reader.arguments)
    starts = range(0, len(dataset), CHUNK_IMAGES)
    chunks = [
        Chunk(i, min(CHUNK_IMAGES, len(dataset) - i), where, _stamp_samples(dataset, i)) for i in starts
    ]
    list_labels = reader.list_labels if knows_labels else None
    return Source(chunks, reader, classes, "", list_labels, identify_samples)


def _try_first_sample(dataset: Any, config: TorchvisionImages, reader: "TorchvisionReader") -> bool:
    """Read the first sample to see what samples are; return whether labels are known without reading."""
    targets = _find_targets(dataset)
    try:
        first = _read_sample(dataset, 0)
    except Exception as error:  # unreadable images are counted when all are read
        if is_fault_of_machine(error):
            raise to_user_error(error, f"{config.dataset}[0]") from None
    else:
        reader.split_sample(first)
        if targets is not None and targets[0] != first[1]:
            targets = None
    return reader.classes is None or targets is not None


def _read_sample(dataset: Any, index: int) -> Any:
    """Read a sample; datasets open files with all of Pillow's formats, of which some run programs."""

    def read() -> Any:
        with known_formats_only():
            return dataset[index]

    return read_again(read)


def _find_targets(dataset: Any) -> list[int] | None:
    """Return the targets of all samples of a dataset; None if it has no list of them."""
    for name in ("targets", "labels", "_labels"):
        values: Any = getattr(dataset, name, None)
        targets = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(targets, list) and len(targets) == len(dataset):
            return targets if all(type(target) is int for target in targets) else None
    return None


def identify_samples(chunk: Chunk) -> Identities:
    """Identify samples by the dataset and their index."""
    return identify([(f"{chunk.payload} {chunk.first_id}", "", chunk.stamps[0])], [chunk.num_images])


def _stamp_samples(dataset: Any, start: int) -> tuple[int]:
    """Return a number that changes with the files of a chunk's samples; -1 if the dataset lists none."""
    listed = getattr(dataset, "samples", None)  # as ImageFolder and ImageNet call it
    if not isinstance(listed, list):
        return (-1,)
    return (int.from_bytes(hash_text(repr(listed[start : start + CHUNK_IMAGES]))[:7]),)


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return the names that a dataset gives its classes; None if it has none, or a name is there twice.

    ImageNet has several synonyms for each class, but two classes that are both called "crane".
    """
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    joined = [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names]
    return tuple(map(to_label, joined)) if len(set(joined)) == len(joined) else None


@lru_cache(maxsize=2)
def _open_dataset(name: str, root: str | None, arguments: str) -> Any:
    """Open a dataset; once per process, because some read all of their files."""
    from torchvision import datasets

    kind = getattr(datasets, name) if name in datasets.__all__ and name not in REFUSED else None
    if not (isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)):
        known = [other for other in datasets.__all__ if other not in REFUSED]
        raise InputError(f"images.dataset: {name!r} is not one of torchvision's: {', '.join(sorted(known))}")
    keywords = json.loads(arguments)
    if "root" in inspect.signature(kind).parameters:
        if root is None:
            raise InputError(f"images.root: set root to the folder with the files of torchvision's {name}")
        keywords["root"] = root
    try:
        return kind(**keywords)
    except TypeError as error:
        raise InputError(f"images.arguments: torchvision's {name}: {error}") from None
    except Exception as error:  # each dataset raises its own types for missing and damaged files
        raise InputError(
            f"images.root: torchvision's {name}: {error}.{_describe_files(kind, root)}"
        ) from None


def _describe_files(kind: Any, root: str | None) -> str:
    """Return which files torchvision looked for, as far as the class of the dataset says."""
    listed = [item for key in ("train_list", "test_list", "resources") for item in getattr(kind, key, [])]
    names = [str(item[0]).rpartition("/")[2] for item in listed]
    folder = f"{kind.__name__}/raw" if hasattr(kind, "raw_folder") else getattr(kind, "base_folder", "")
    rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    wanted = f" It looks in {root}/{folder}".rstrip("/")
    return f"{wanted} for {', '.join(names[:MAX_NAMES])}{rest}" if names else wanted


@dataclass(frozen=True)
class TorchvisionReader:
    """Reads images by their index; an object and not a closure, because it is pickled for workers.

    Attributes:
        dataset: Name of the class.
        root: The folder with its files; None if it takes none.
        arguments: Its other arguments, as JSON.
        classes: Names of the classes; None if the targets are not used.
    """

    dataset: str
    root: str | None
    arguments: str
    classes: tuple[str, ...] | None

    def list_labels(self, chunks: Sequence[Chunk]) -> list[str]:
        """Return the labels of the samples of chunks."""
        targets = _find_targets(_open_dataset(self.dataset, self.root, self.arguments))
        if self.classes is None or targets is None:
            return list_no_labels(chunks)
        ids = [chunk.first_id + i for chunk in chunks for i in range(chunk.num_images)]
        return [to_label(targets[i], self.classes) for i in ids]

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
        """Yield the wanted images of a chunk, decoded by torchvision."""
        dataset = _open_dataset(self.dataset, self.root, self.arguments)
        for image_id in range(chunk.first_id, chunk.first_id + chunk.num_images):
            if not wanted(image_id):
                continue
            name = f"{self.dataset}[{image_id}]"
            try:
                sample = _read_sample(dataset, image_id)
            except Exception as error:  # a damaged or missing file; decoders raise many types
                if is_fault_of_machine(error):
                    raise to_user_error(error, name) from None
                yield EncodedImage(image_id, f"{name}: {error}", b"", "")
                continue
            yield EncodedImage(image_id, name, *self.split_sample(sample))

    def split_sample(self, sample: Any) -> tuple[Image.Image, str]:
        """Return the image and the class name of a sample of the dataset.

        Raises:
            InputError: The sample is no image with an integer target, or the target is beyond the classes.
        """
        image, target = sample if isinstance(sample, tuple) and len(sample) == 2 else (sample, None)
        if not isinstance(image, Image.Image):
            raise InputError(f"images.dataset: samples of torchvision's {self.dataset} are not single images")
        if self.classes is not None and (not isinstance(target, int) or isinstance(target, bool)):
            raise InputError(
                f"images.labelled: targets of torchvision's {self.dataset} are {type(target).__name__}, not "
                "the number of a class; set labelled: false, or arguments with which it gives one"
            )
        return image, "" if self.classes is None else to_label(target, self.classes)
