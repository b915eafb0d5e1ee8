"""Choose the images that students learn from, and those that they are evaluated on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ka_ray.config import Config, ImagesConfig, TeachConfig
from ka_ray.errors import InputError
from ka_ray.images import Ids, Source, open_source, read_chunk, sample_ids
from ka_ray.images.sources import Columns
from ka_ray.images.views import View
from ka_ray.storage.file_names import join_names
from ka_ray.storage.read_errors import to_user_error


@dataclass(frozen=True)
class ImageSet:
    """Some images of a source.

    Attributes:
        config: The config of the source.
        source: The listed source.
        ids: The ids of the images, sorted, ``[N]`` int64.
        views: Column -> view of the images that is read; None: the column ``image``, as the config says.
    """

    config: ImagesConfig
    source: Source
    ids: Ids
    views: Mapping[str, View] | None = None

    def with_views(self, views: Mapping[str, View]) -> "ImageSet":
        """Return the same images with other columns: column -> view."""
        return replace(self, views=views)

    def with_ids(self, ids: Ids) -> "ImageSet":
        """Return other images of the same source, by their sorted ids."""
        return replace(self, ids=ids)


def split_images(config: Config | TeachConfig) -> tuple[ImageSet, ImageSet]:
    """Choose the training and the evaluation images; the choice depends only on config and seed.

    Args:
        config: The config of a run. Evaluation images are those of ``evaluation.images``, or, if that is
            None, the share ``evaluation.holdout`` of the images.

    Returns:
        The training images and the evaluation images.

    Raises:
        InputError: A source has no images, or too few to hold any out.
    """
    training = _list_images(config.images, config.seed)
    if config.evaluation.images is not None:
        return training, _list_images(config.evaluation.images, config.seed)
    return hold_out(training, config.evaluation.holdout, config.seed + 1, "evaluation.holdout")


def _list_images(config: ImagesConfig, seed: int) -> ImageSet:
    source = open_source(config)
    return ImageSet(config, source, sample_ids(source.num_images, config.limit, seed))


SAMPLED_CHUNKS = 4
"""Number of chunks, spread over the source, that :func:`read_sample` reads from."""

IMAGES_PER_CHUNK = 4
"""Number of images that it reads from each of them."""


def read_sample(images: ImageSet) -> Columns | None:
    """Read a few images without Ray, to try the teachers on.

    Args:
        images: The images to choose from.

    Returns:
        Columns as :func:`ka_ray.images.sources.read_chunk` yields them; None if none of the few is readable.

    Raises:
        InputError: None is readable, and these are already more than ``max_unreadable``.
    """
    chunks = images.source.chunks
    numbers = np.unique(np.linspace(0, len(chunks) - 1, SAMPLED_CHUNKS, dtype=int))
    parts, unreadable = list[Columns](), list[str]()
    for chunk in (chunks[number] for number in numbers):
        start, end = np.searchsorted(images.ids, [chunk.first_id, chunk.first_id + chunk.num_images])
        ids = images.ids[start:end]
        ids = ids[np.unique(np.linspace(0, len(ids) - 1, IMAGES_PER_CHUNK, dtype=int))] if len(ids) else ids
        # Unreadable images are counted when all images are read.
        note = lambda _, name: unreadable.append(name)  # noqa: E731
        try:
            parts += read_chunk(images.config, images.source.read, chunk, ids, None, note, images.views)
        except (ConnectionError, TimeoutError) as error:  # in a pass, the chunk would be read again
            raise to_user_error(error, "images") from None
    if not parts and len(unreadable) > images.config.max_unreadable:
        raise InputError(
            f"images: none of {len(unreadable)} images that were tried can be read, for example "
            f"{unreadable[0]}; images.max_unreadable = {images.config.max_unreadable} allows no more"
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None


def split_for_features(images: ImageSet, limit: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Choose at random the images whose features are stored.

    Args:
        images: The training images.
        limit: The number of images to choose; None chooses all.
        seed: The seed of the run.

    Returns:
        The chosen images and the others.
    """
    # An offset per purpose keeps the choices of one seed independent of one another.
    return _divide(images, limit, seed + 2)


def hold_out(images: ImageSet, share: float, seed: int, key: str) -> tuple[ImageSet, ImageSet]:
    """Hold out a share of images at random.

    Args:
        images: The images to split.
        share: The share to hold out, in 0 ... 1.
        seed: The seed of the choice.
        key: The config key of the share, for the error message.

    Returns:
        The images that remain and those that are held out.

    Raises:
        InputError: One of the two would be empty.
    """
    num_held_out = round(share * len(images.ids))
    if not 0 < num_held_out < len(images.ids):
        raise InputError(
            f"{key}: {share} of {len(images.ids)} images holds out {num_held_out}; "
            "at least one image must be held out and at least one remain"
        )
    held_out, remaining = _divide(images, num_held_out, seed)
    return remaining, held_out


def _divide(images: ImageSet, count: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split off ``count`` images at random (None: all)."""
    chosen = np.zeros(len(images.ids), dtype=bool)
    chosen[sample_ids(len(images.ids), count, seed)] = True
    return replace(images, ids=images.ids[chosen]), replace(images, ids=images.ids[~chosen])


def count_labels(images: ImageSet) -> Counter[str] | None:
    """Count the labels of images before any image is read.

    Args:
        images: The images.

    Returns:
        Label -> its number of images; the empty label is that of images without one. None if the source does
        not list its labels.
    """
    try:
        labels = images.source.labels
    except (ConnectionError, TimeoutError) as error:  # in a pass, the chunk would be read again
        raise to_user_error(error, "images") from None
    return None if labels is None else Counter(labels[image_id] for image_id in images.ids.tolist())


def check_labels(classes: Sequence[str], images: ImageSet, what: str) -> Counter[str] | None:
    """Check before anything starts that there are images of every class.

    Args:
        classes: The classes to learn by their labels.
        images: The training images. A source that does not list its labels is checked when it is read.
        what: What learns the classes, for the message.

    Returns:
        What :func:`count_labels` returns.

    Raises:
        InputError: There is no image of a class.
    """
    counts, known = count_labels(images), images.source.class_names
    if counts is not None:
        missing = [name for name in classes if not counts[name]]
    else:
        missing = [] if known is None else [name for name in classes if name not in known]
    if missing:
        labels = "" if counts is None else f"; the labels are {join_names(sorted({*counts} - {''}))}"
        raise InputError(
            f"{what}: no image is labelled {join_names(missing)}{labels}. Class names and labels must be "
            "spelled the same"
        )
    return counts


def check_batches(config: Config, images: ImageSet, held_out: int = 0) -> None:
    """Check before anything starts that there are enough images for a batch of every stage.

    Args:
        config: The config of the run.
        images: The training images.
        held_out: Number of them that joint learning does not learn from.

    Raises:
        InputError: A batch is larger than the number of images that its stage learns from.
    """
    total = len(images.ids)
    kept = min(total, config.extract.images or total)
    for key, num_images in {"codes": kept, "layers": kept, "joint": total - held_out}.items():
        size = getattr(config, key).batch_size
        # A start is measured in the batches of joint learning, also if nothing is learned behind it.
        uses_joint = config.joint.any_steps or config.student.start != "random"
        is_used = uses_joint if key == "joint" else config.learns_layers
        if is_used and size > num_images:
            raise InputError(
                f"{key}.batch_size: {size} is larger than the {num_images} images that it learns from"
            )
