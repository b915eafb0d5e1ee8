"""What of a config does not fit the images, said before anything starts."""

from collections.abc import Sequence

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.split import ImageSet


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
