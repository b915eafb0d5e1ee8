"""Find out what a config says of images: whether folders are classes, sizes, and how many are in a batch."""

from collections.abc import Collection, Sequence
from itertools import islice

from ka_ray.config import Config, FolderImages, ImagesConfig
from ka_ray.errors import InputError
from ka_ray.images import Source, open_source
from ka_ray.images.decode import decode_image
from ka_ray.images.folder import list_subfolders
from ka_ray.storage.file_names import join_names
from ka_ray.training.batches import count_held_out
from ka_ray.workflows.merge_config import DEFAULT_SIZE, Choice

TRIED_IMAGES = 16
"""Number of images whose size is looked at."""

MAX_NAMES = 4
"""Number of subfolders that a reason names."""


def choose(config: Config) -> dict[str, Choice]:
    """Find out what a config says of its images.

    Args:
        config: The config with the default choices, and with every teacher described key by key.

    Returns:
        Dotted key -> its value, without keys that keep their defaults or that the source does not have.

    Raises:
        InputError: There are no images.
    """
    source = open_source(config.images)
    classes = {name for teacher in config.teachers for name in teacher.classes}
    names = [teacher.name for teacher in config.teachers]
    size = _find_size(config, source)
    choices = {"images.size": size, "images.labelled": find_labels(config.images, classes, names)}
    if config.evaluation.images is not None:
        choices["evaluation.images.size"] = Choice(size.value, "as images.size")
        labels = find_labels(config.evaluation.images, classes, names)
        choices["evaluation.images.labelled"] = labels
    choices["joint.batch_size"] = _find_batch_size(config, source.num_images)
    return {key: choice for key, choice in choices.items() if choice is not None}


def find_labels(images: ImagesConfig, classes: Collection[str], teachers: Sequence[str]) -> Choice | None:
    """Find out whether the subfolders of a folder are classes: most are named like one, and hold all images.

    Args:
        images: The config of a source; only folders are looked at.
        classes: The classes of all teachers.
        teachers: The names of the teachers.

    Returns:
        Whether the images are labelled, and why; None if the source is no folder.
    """
    if not isinstance(images, FolderImages):
        return None
    names = list_subfolders(images.path)
    known = [name for name in names if name in classes]
    others = [name for name in names if name not in classes]
    if not names:
        return Choice(False, "no labels: there are no subfolders")
    named = f"{len(known)} of {len(names)} subfolders are named like a class of the teachers"
    listed = join_names(others, MAX_NAMES)
    if len(known) < len(others):
        return Choice(False, f"no labels: {named} (not {listed}){_advise(others, classes, teachers)}")
    try:
        open_source(images.model_copy(update={"labelled": True}))
    except InputError:
        return Choice(False, "no labels: subfolders are named like classes, but some images are in none")
    return Choice(True, f"labels: {named}{f'; images in {listed} count as of no class' if others else ''}")


def _advise(others: Sequence[str], classes: Collection[str], teachers: Sequence[str]) -> str:
    """Return what the user may do about subfolders that are no classes; empty if nothing comes to mind."""
    spelled = {name.casefold() for name in classes}
    if any(name.casefold() in spelled for name in others):
        return "; they must be spelled like the classes"
    owned = [name for name in others if name in teachers]
    if owned:
        return f"; --hints can say that {join_names(owned, MAX_NAMES)} show the classes of that teacher"
    return ""


def _find_size(config: Config, source: Source) -> Choice:
    """Return the size for networks that name none, and why."""
    without = [
        teacher.name
        for teacher in config.teachers
        if teacher.preprocessing.size is None and teacher.preprocessing.crop is None
    ]
    if not without:
        return Choice(DEFAULT_SIZE, "not used: every teacher names its own size")
    sides = _measure_sides(config.images, source)
    whose = f"for {join_names(without, MAX_NAMES)}, which names no size"
    if len(sides) == 1 and max(sides) < DEFAULT_SIZE and max(sides) >= 4:
        [side] = sides
        return Choice(side, f"{whose}: all images that were looked at are {side} x {side}")
    return Choice(DEFAULT_SIZE, f"{whose}: assumed; compare with your training")


def _measure_sides(images: ImagesConfig, source: Source) -> set[int]:
    """Return the heights and widths of the first images, in pixels; unreadable ones are left out."""
    sides = set[int]()
    for encoded in islice(source.read(source.chunks[0], lambda image_id: True), TRIED_IMAGES):
        try:
            sides |= {*decode_image(encoded.content, images.decoding).size}
        except Exception:  # counted when all images are read
            continue
    return sides


def _find_batch_size(config: Config, num_images: int) -> Choice | None:
    """Return the size of a batch of joint learning if there are too few images for the default, and why."""
    total = min(num_images, config.images.limit or num_images)
    if config.evaluation.images is None:
        total -= round(config.evaluation.holdout * total)
    left = total - count_held_out(total)
    if config.joint.batch_size <= left or left < 1 or "batch_size" in config.joint.model_fields_set:
        return None
    return Choice(2 ** (left.bit_length() - 1), f"because the student learns from only {left:,} images")
