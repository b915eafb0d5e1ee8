"""Image files in folders: one folder a class, or unlabelled."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ka_ray.config import FolderImages
from ka_ray.errors import InputError
from ka_ray.images.reading import Chunk, Encoded, Source

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
CHUNK_IMAGES = 64


def list_folder(config: FolderImages) -> Source:
    """List the image files below a folder, sorted by path; a labelled file's class is its top folder.

    Raises:
        InputError: No image file is there, or a labelled folder holds files beside the class folders.
    """
    paths = sorted(p for p in config.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise InputError(
            f"images.path {config.path}: no image files; accepted: {', '.join(sorted(SUFFIXES))}"
        )
    labels = [_class_of(path, config) if config.labelled else "" for path in paths]
    entries = [(str(path), label) for path, label in zip(paths, labels, strict=True)]
    starts = range(0, len(entries), CHUNK_IMAGES)
    chunks = [Chunk(i, len(entries[i : i + CHUNK_IMAGES]), entries[i : i + CHUNK_IMAGES]) for i in starts]
    return Source(chunks, read_folder, tuple(sorted(set(labels))) if config.labelled else None)


def _class_of(path: Path, config: FolderImages) -> str:
    parts = path.relative_to(config.path).parts
    if len(parts) < 2:
        raise InputError(
            f"images.path {config.path}: {path.name} lies beside the class folders; "
            "one folder a class is accepted, or set images.labelled=false"
        )
    return parts[0]


def read_folder(chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[Encoded]:
    """Yield the wanted files of a chunk, unread where the file cannot be opened (empty content)."""
    for offset, (path, label) in enumerate(chunk.payload):
        if wanted(chunk.first_id + offset):
            yield Encoded(chunk.first_id + offset, path, _content(path), label)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # the decoder refuses it, and the image is counted as unreadable under its name
