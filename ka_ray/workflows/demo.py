"""`ka-ray demo`: its config, and sample images to try the finished student on."""

import re
from itertools import islice
from pathlib import Path

from PIL import Image

from ka_ray.config import ImagesConfig, Preprocessing
from ka_ray.images import open_source
from ka_ray.images.decode import decode_image
from ka_ray.images.views import make_view
from ka_ray.storage.files import atomic_file, make_folder


def demo_config() -> Path:
    """Return the path of the demo's config: a wheel has it inside the package, a checkout in `jobs/`."""
    package = Path(__file__).parent.parent
    places = (package / "configs" / "digits.yaml", package.parent / "jobs" / "configs" / "digits.yaml")
    return next(place for place in places if place.exists())


def save_samples(images: ImagesConfig, folder: Path, count: int = 5) -> list[Path]:
    """Write the first images of a source as PNG files ID_LABEL.png, to try `predict` on.

    Args:
        images: The config of the source.
        folder: Folder to write the files to; created if it does not exist.
        count: Number of images; fewer are written if the first chunk of the source has fewer.

    Returns:
        The paths of the files.
    """
    source, paths, view = open_source(images), list[Path](), make_view(Preprocessing(), images)
    make_folder(folder)
    for encoded in islice(source.read(source.chunks[0], lambda image_id: True), count):
        # A label is data: with `/` in it, it must not choose another folder.
        label = re.sub(r"[^\w.\-]", "_", str(encoded.label))
        paths.append(folder / f"{encoded.image_id}_{label}.png")
        with atomic_file(paths[-1]) as part:
            pixels = view.apply(decode_image(encoded.content, images.decoding))
            Image.fromarray(pixels.transpose(1, 2, 0)).save(part, format="PNG")
    return paths
