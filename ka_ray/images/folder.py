"""The image source of files in folders: one folder per class, or unlabelled files."""

from collections.abc import Callable, Iterator

from ka_ray.config import FolderImages
from ka_ray.config.class_names import normalise
from ka_ray.errors import InputError
from ka_ray.images.sources import Chunk, EncodedImage, Source
from ka_ray.storage.batch_read import read_files
from ka_ray.storage.files import list_files

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
"""Suffixes of the files that are read as images, in lower case; other files are ignored."""

CHUNK_IMAGES = 64
"""Number of images per chunk: their encoded files are in memory at the same time."""


def list_folder(config: FolderImages) -> Source:
    """List the image files below a folder, sorted by path.

    Args:
        config: The config's ``images`` section. With ``labelled``, a file's class is the name of the folder
            directly below ``path`` that the file is in.

    Raises:
        InputError: There is no image file, or a labelled folder has image files outside of class folders.
    """
    names = list_files(config.path, SUFFIXES)
    if not names:
        raise InputError(
            f"images.path {config.path}: no image files; accepted: {', '.join(sorted(SUFFIXES))}"
        )
    labels = [_class_of(name, config) if config.labelled else "" for name in names]
    # Strings, not Path objects: they are small to send to workers, and Source.digest hashes their repr.
    entries = [(f"{config.path}/{name}", label) for name, label in zip(names, labels, strict=True)]
    starts = range(0, len(entries), CHUNK_IMAGES)
    chunks = [Chunk(i, len(entries[i : i + CHUNK_IMAGES]), entries[i : i + CHUNK_IMAGES]) for i in starts]
    return Source(chunks, read_folder, tuple(sorted(set(labels))) if config.labelled else None)


def _class_of(name: str, config: FolderImages) -> str:
    """Return the class of a file: the first folder of its path inside the source's folder."""
    class_name, inside_class_folder, _ = name.partition("/")
    if not inside_class_folder:
        raise InputError(
            f"images.path {config.path}: {name} is not in a class folder; move it into a folder that is "
            "named after its class, or set images.labelled=false"
        )
    return normalise(class_name)


def read_folder(chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
    """Yield the wanted files of a chunk; a file that cannot be opened has empty content.

    Args:
        chunk: A chunk of :func:`list_folder`.
        wanted: Whether to read the image with this id.

    Raises:
        ConnectionError: The network failed, not the file; the caller may try again.
        TimeoutError: The network did not answer; the caller may try again.
    """
    chosen = [
        (chunk.first_id + offset, path, label)
        for offset, (path, label) in enumerate(chunk.payload)
        if wanted(chunk.first_id + offset)
    ]
    contents = read_files([path for _, path, _ in chosen])
    for (image_id, path, label), content in zip(chosen, contents, strict=True):
        if isinstance(content, ConnectionError | TimeoutError):
            raise content  # the file itself may be fine: the chunk is read again
        # The decoder refuses empty content, so the image is counted as unreadable under its name.
        yield EncodedImage(image_id, path, b"" if isinstance(content, OSError) else content, label)
