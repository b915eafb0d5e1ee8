"""What a command checks first: all that takes no time, before networks are read and images are listed."""

from collections.abc import Iterator
from pathlib import Path

from ka_ray.config import Config, FolderImages, ImagesConfig, MixedImages, TeachConfig
from ka_ray.errors import InputError
from ka_ray.runs.output_lock import refuse_locked_folder
from ka_ray.runs.servers import check_servers
from ka_ray.storage.files import is_remote


def check_first(config: Config | TeachConfig) -> None:
    """Check that servers answer, that no other command works in the output folder, and that there are images.

    Args:
        config: The config of the command.

    Raises:
        InputError: Something in the config cannot work; the message names it.
    """
    refuse_locked_folder(config.output_dir)
    for images in (config.images, config.evaluation.images):
        for folder in _list_folders(images):
            if _is_empty(folder.path):
                raise InputError(f"images.path: the folder {folder.path} is empty")
    check_servers(config)


def _is_empty(folder: Path) -> bool:
    """Return whether a local folder holds nothing; one that cannot be read is refused when it is listed."""
    try:
        return not is_remote(folder) and folder.is_dir() and not any(folder.iterdir())
    except OSError:
        return False


def _list_folders(images: ImagesConfig | None) -> Iterator[FolderImages]:
    """Yield the folders of image files among the parts of a source."""
    for part in images.parts if isinstance(images, MixedImages) else (images,):
        if isinstance(part, FolderImages):
            yield part
