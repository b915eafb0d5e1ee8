"""Images to try a finished student on: those of its run, where they are still there.

Shapes: N images, C, H and W of the student's view.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ka_ray.config import ImagesConfig, load_images
from ka_ray.errors import InputError, ReadError
from ka_ray.images import open_source, read_chunk, sample_ids
from ka_ray.images.views import IMAGE
from ka_ray.runs.output_folder import CONFIG
from ka_ray.runs.student_images import build_images_config_for
from ka_ray.storage.files import exists, read_json
from ka_ray.student import StudentSpec

RANDOM_IMAGES = 64
"""Number of images of random pixels, where there are no others."""


@dataclass(frozen=True)
class SampleImages:
    """Images as the student gets them.

    Attributes:
        pixels: `[N, C, H, W]`, uint8, in random order.
        source: What they are, for the user.
        are_random: Whether they are random pixels, which look like no image.
    """

    pixels: Tensor
    source: str
    are_random: bool = False


def read_sample_images(folder: Path, spec: StudentSpec, images: str | None, count: int) -> SampleImages:
    """Read a random sample of images, always the same.

    Args:
        folder: The output folder of the run, local or remote.
        spec: What its student is.
        images: Path of images, as `ka-ray evaluate --images` takes it; None: the evaluation images of the
            run, or else its images, or else random pixels.
        count: Largest number of images.

    Raises:
        InputError: None of the images that were asked for can be read.
    """
    if images is not None:
        pixels = _read(build_images_config_for(spec, images), spec, count)
        return SampleImages(pixels, f"images of {images}")
    problem = "the run's folder does not say which images it used"
    for name, tree in _list_configs(folder):
        try:
            return SampleImages(_read(load_images(tree), spec, count), name)
        except (InputError, ReadError, OSError) as error:
            problem = (str(error).splitlines() or [""])[-1].strip()
    generator = torch.Generator().manual_seed(0)
    shape = (min(count, RANDOM_IMAGES), *spec.view.shape)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return SampleImages(
        pixels, f"random pixels, which say little; give --images, because {problem}", are_random=True
    )


def _list_configs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the image sources of a run: what they are -> the section of the config."""
    if not exists(folder / CONFIG):
        return
    config = read_json(folder / CONFIG)
    evaluation = config.get("evaluation")
    found = {
        "the run's evaluation images": evaluation.get("images") if isinstance(evaluation, dict) else None,
        "the run's images": config.get("images"),
    }
    yield from ((name, tree) for name, tree in found.items() if isinstance(tree, dict))


def _read(config: ImagesConfig, spec: StudentSpec, count: int) -> Tensor:
    source, unreadable = open_source(config), list[str]()
    ids = sample_ids(source.num_images, count, seed=0)
    parts = []
    for chunk in source.chunks:
        start, end = np.searchsorted(ids, [chunk.first_id, chunk.first_id + chunk.num_images])
        if start == end:
            continue
        note = lambda _, name: unreadable.append(name)  # noqa: E731
        columns = read_chunk(config, source.read, chunk, ids[start:end], None, note, {IMAGE: spec.view})
        parts += [part[IMAGE] for part in columns]
    if not parts:
        example = f", for example {unreadable[0]}" if unreadable else ""
        raise InputError(f"images: none of {len(ids)} images can be read{example}")
    pixels = torch.from_numpy(np.concatenate(parts))
    # In random order, because sources list class by class.
    return pixels[torch.from_numpy(np.random.default_rng(0).permutation(len(pixels)))]
