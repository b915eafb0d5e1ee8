"""Which images are learned from, and which the student is judged on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ka_ray.config import Config, ImagesConfig, TeachConfig
from ka_ray.errors import InputError
from ka_ray.images import Ids, Source, chosen_ids, open_source


@dataclass(frozen=True)
class ImageSet:
    """Some images of a source."""

    config: ImagesConfig
    source: Source
    ids: Ids


def split_images(config: Config | TeachConfig) -> tuple[ImageSet, ImageSet]:
    """Give the images to learn from and those to judge on, by config and seed alone.

    Raises:
        InputError: A source has no images, or too few to hold any out.
    """
    source = open_source(config.images)
    ids = chosen_ids(source.num_images, config.images.limit, config.seed)
    judged = config.evaluation.images
    if judged is not None:
        judged_source = open_source(judged)
        judged_ids = chosen_ids(judged_source.num_images, judged.limit, config.seed)
        return ImageSet(config.images, source, ids), ImageSet(judged, judged_source, judged_ids)
    whole = ImageSet(config.images, source, ids)
    return hold_out(whole, config.evaluation.holdout, config.seed + 1, "evaluation.holdout")


def split_for_features(images: ImageSet, limit: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Choose the images whose features are kept; give them and the others."""
    chosen = np.zeros(len(images.ids), dtype=bool)
    chosen[chosen_ids(len(images.ids), limit, seed + 2)] = True
    kept, others = images.ids[chosen], images.ids[~chosen]
    return ImageSet(images.config, images.source, kept), ImageSet(images.config, images.source, others)


def hold_out(images: ImageSet, share: float, seed: int, key: str) -> tuple[ImageSet, ImageSet]:
    """Split images at random: those to learn from, and a share of them to judge on.

    Raises:
        InputError: One of the two would be empty; ``key`` says what to change.
    """
    num_held = round(share * len(images.ids))
    if not 0 < num_held < len(images.ids):
        raise InputError(f"{key}: {share} of {len(images.ids)} images leaves none")
    held = np.zeros(len(images.ids), dtype=bool)
    held[chosen_ids(len(images.ids), num_held, seed)] = True
    return replace(images, ids=images.ids[~held]), replace(images, ids=images.ids[held])


def check_labels(classes: Sequence[str], images: ImageSet) -> None:
    """Refuse to learn from labels, before anything starts, where the source lists no images of a class.

    Raises:
        InputError: Naming the classes. A source that does not list its classes is checked when it is read.
    """
    known = images.source.class_names
    missing = [] if known is None else [name for name in classes if name not in known]
    if missing:
        raise InputError(f"baseline scratch: no image is labelled {', '.join(missing)}")


def check_batches(config: Config, images: ImageSet) -> None:
    """Refuse batches larger than the images that there are, before anything starts.

    Raises:
        InputError: Naming the key and both sizes.
    """
    total = len(images.ids)
    kept = min(total, config.extract.images or total)
    for key, most in {"codes": kept, "layers": kept, "joint": total}.items():
        size, used = getattr(config, key).batch_size, config.baseline is None
        if size > most and (config.joint.any_steps if key == "joint" else used):
            raise InputError(f"{key}.batch_size: {size} is larger than the {most} images that it learns from")
