"""Image files in folders: one folder a class, or unlabelled."""

from collections.abc import Callable, Iterator

from ka_ray.config import FolderImages
from ka_ray.errors import InputError
from ka_ray.images.sources import Chunk, Encoded, Source
from ka_ray.storage.files import list_files, read_files

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
CHUNK_IMAGES = 64


def list_folder(config: FolderImages) -> Source:
    """List the image files below a folder, sorted by path; a labelled file's class is its top folder.

    Raises:
        InputError: No image file is there, or a labelled folder holds files beside the class folders.
    """
    names = list_files(config.path, SUFFIXES)
    if not names:
        raise InputError(
            f"images.path {config.path}: no image files; accepted: {', '.join(sorted(SUFFIXES))}"
        )
    labels = [_class_of(name, config) if config.labelled else "" for name in names]
    entries = [(f"{config.path}/{name}", label) for name, label in zip(names, labels, strict=True)]
    starts = range(0, len(entries), CHUNK_IMAGES)
    chunks = [Chunk(i, len(entries[i : i + CHUNK_IMAGES]), entries[i : i + CHUNK_IMAGES]) for i in starts]
    return Source(chunks, read_folder, tuple(sorted(set(labels))) if config.labelled else None)


def _class_of(name: str, config: FolderImages) -> str:
    top, below, _ = name.partition("/")
    if not below:
        raise InputError(
            f"images.path {config.path}: {name} lies beside the class folders; "
            "one folder a class is accepted, or set images.labelled=false"
        )
    return top


def read_folder(chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[Encoded]:
    """Yield the wanted files of a chunk, unread where the file cannot be opened (empty content)."""
    chosen = [
        (chunk.first_id + offset, path, label)
        for offset, (path, label) in enumerate(chunk.payload)
        if wanted(chunk.first_id + offset)
    ]
    contents = read_files([path for _, path, _ in chosen])
    for (image_id, path, label), content in zip(chosen, contents, strict=True):
        if isinstance(content, ConnectionError | TimeoutError):
            raise content  # the file may well be whole: it is read again
        # Empty content the decoder refuses: the image is counted as unreadable under its name.
        yield Encoded(image_id, path, b"" if isinstance(content, OSError) else content, label)
