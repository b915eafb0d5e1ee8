"""The image source of files in folders: one folder per class, or unlabelled files."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from ka_ray.config import FolderImages
from ka_ray.config.class_names import normalise
from ka_ray.errors import InputError
from ka_ray.images.sources import Chunk, EncodedImage, Source
from ka_ray.storage.batch_read import read_files
from ka_ray.storage.files import list_files

# fmt: off
SUFFIXES = frozenset((
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jif", ".jp2", ".jpe",
    ".jpeg", ".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"
))
# fmt: on
"""Suffixes of image files, in lower case; those that Pillow cannot read are counted as unreadable."""

# fmt: off
OTHER_SUFFIXES = frozenset((
    ".bin", ".cfg", ".csv", ".db", ".doc", ".gz", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log",
    ".md", ".mp4", ".npy", ".npz", ".parquet", ".pdf", ".pkl", ".pt", ".pth", ".py", ".rst",
    ".safetensors", ".sh", ".tar", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml", ".zip"
))
# fmt: on
"""Suffixes of other files. A file with none of all these suffixes is judged by its content."""

SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Lower-case names of files and folders that operating systems add; they are left out, as hidden ones are."""

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"\x00\x00\x00\x0cjP")
"""First bytes of JPEG, PNG, GIF, BMP, TIFF and JPEG 2000 files."""

SIGNATURE_BYTES = 16
"""How much of a file is read to judge what it is."""

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
    names, note = _find_images(config.path)
    if not names:
        raise InputError(
            f"images.path {config.path}: no image files; accepted: {', '.join(sorted(SUFFIXES))}, and files "
            f"without such a suffix whose content is an image. {note}".rstrip()
        )
    labels = [_class_of(name, config) if config.labelled else "" for name in names]
    # Strings, not Path objects: they are small to send to workers, and Source.digest hashes their repr.
    entries = [(f"{config.path}/{name}", label) for name, label in zip(names, labels, strict=True)]
    starts = range(0, len(entries), CHUNK_IMAGES)
    chunks = [Chunk(i, len(entries[i : i + CHUNK_IMAGES]), entries[i : i + CHUNK_IMAGES]) for i in starts]
    return Source(chunks, read_folder, tuple(sorted(set(labels))) if config.labelled else None, note)


def _find_images(folder: Path) -> tuple[list[str], str]:
    """Return the sorted paths of the image files below a folder, and a note on the other files."""
    names = [name for name in list_files(folder) if not _is_hidden(name)]
    suffixes = {name: PurePosixPath(name).suffix.lower() for name in names}
    unclear = [name for name in names if suffixes[name] not in SUFFIXES | OTHER_SUFFIXES]
    beginnings = read_files([f"{folder}/{name}" for name in unclear], SIGNATURE_BYTES)
    by_content = {name for name, head in zip(unclear, beginnings, strict=True) if _is_image(head)}
    images = [name for name in names if suffixes[name] in SUFFIXES or name in by_content]
    others = Counter(suffixes[name] or "without suffix" for name in set(names) - set(images))
    found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    return images, f"{folder}: left out files that are no images: {found}" if found else ""


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in SYSTEM_FILES for part in name.split("/"))


def _is_image(beginning: bytes | OSError) -> bool:
    if isinstance(beginning, OSError):
        return True  # it is counted as unreadable, under its name, when it is read
    boxes = beginning[4:8] == b"ftyp" and beginning[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")
    webp = beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"
    # Portable bitmaps begin with P1 ... P6 and white space.
    portable = beginning[:1] == b"P" and beginning[1:2] in b"123456" and beginning[2:3].isspace()
    return boxes or webp or portable or beginning.startswith(SIGNATURES)


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
