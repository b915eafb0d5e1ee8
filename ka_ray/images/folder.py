"""The image source of files in folders: one folder per class, or unlabelled files."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ka_ray.config import FolderImages
from ka_ray.errors import InputError
from ka_ray.images.cells import or_raise, to_label
from ka_ray.images.hidden_files import HiddenFiles, is_hidden
from ka_ray.images.listed_files import (
    identify_listed_files,
    labels_of_files,
    read_listed_files,
    split_into_chunks,
)
from ka_ray.images.sources import Source
from ka_ray.storage.batch_read import read_files
from ka_ray.storage.file_names import join_names, list_files_with_sizes, printable
from ka_ray.storage.files import is_remote

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

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"\x00\x00\x00\x0cjP")
"""First bytes of JPEG, PNG, GIF, BMP, TIFF and JPEG 2000 files."""

SIGNATURE_BYTES = 16
"""How much of a file is read to judge what it is."""

KNOWN_SUFFIXES = SUFFIXES | OTHER_SUFFIXES


def list_folder(config: FolderImages) -> Source:
    """List the image files below a folder, sorted by path.

    Args:
        config: The config's ``images`` section. With ``labelled``, a file's class is the name of the folder
            directly below ``path`` that the file is in.

    Raises:
        InputError: There is no image file, or a labelled folder has image files outside of class folders.
    """
    sizes, notes = find_image_files(config.path)
    if not sizes:
        raise InputError(
            f"images.path {config.path}: no image files; accepted: {', '.join(sorted(SUFFIXES))}, and files "
            f"without such a suffix whose content is an image. {'; '.join(notes)}".rstrip()
        )
    folder = str(config.path)
    labels = (_class_of(name, config) if config.labelled else "" for name in sizes)
    entries = [(f"{folder}/{name}", label) for name, label in zip(sizes, labels, strict=True)]
    classes = tuple(sorted({label for _, label in entries})) if config.labelled else None
    if classes is not None:
        notes += _describe_empty(config.path, classes)
    note = f"{folder}: {'; '.join(notes)}" if notes else ""
    chunks = split_into_chunks(entries, list(sizes.values()))
    return Source(chunks, read_listed_files, classes, note, labels_of_files, identify_listed_files)


def list_subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder as the classes that they would be, sorted.

    Args:
        folder: A local or remote folder; hidden folders in it are left out.
    """
    if is_remote(folder):
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    else:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    return sorted({to_label(name) for name in names if not is_hidden(name)})


def find_image_files(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Find the image files below a folder; hidden ones and other files are left out.

    Args:
        folder: A local or remote folder.

    Returns:
        Path relative to the folder -> size in bytes, sorted by path; and notes on what was left out.
    """
    hidden = HiddenFiles()
    names = sizes = list_files_with_sizes(folder, hidden)
    unclear = [name for name in names if _suffix(name) not in KNOWN_SUFFIXES]
    beginnings = read_files([f"{folder}/{name}" for name in unclear], SIGNATURE_BYTES)
    by_content = {
        name for name, head in zip(unclear, beginnings, strict=True) if _is_image(head, f"{folder}/{name}")
    }
    images: list[str] = []
    others: Counter[str] = Counter()
    for name in names:
        if (suffix := _suffix(name)) in SUFFIXES or name in by_content:
            images.append(name)
        else:
            others[printable(suffix) or "without suffix"] += 1
    found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    notes = [f"left out files that are no images: {found}" if found else "", hidden.note]
    return {name: sizes[name] for name in images}, [note for note in notes if note]


def _describe_empty(folder: Path, classes: Sequence[str]) -> list[str]:
    """Return a note on the class folders that hold no image; object stores have no empty folders."""
    if is_remote(folder):
        return []
    empty = sorted({*list_subfolders(folder)} - {*classes})
    return [f"class folders without an image: {join_names(empty)}"] if empty else []


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  # pathlib takes four times as long


def _is_image(beginning: bytes | OSError, path: str) -> bool:
    """Return whether a file is an image by its first bytes."""
    if isinstance(beginning, OSError):
        or_raise(beginning, printable(path))
        if isinstance(beginning, FileNotFoundError) and os.path.islink(path):  # noqa: PTH114
            raise InputError(
                f"images.path: {printable(path)} is a link to {printable(os.path.realpath(path))}, which "
                "does not exist; if that is on another file system, mount it, else remove the link"
            )
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
            f"images.path {config.path}: {printable(name)} is not in a class folder; move it into a folder "
            "that is named after its class, or set images.labelled=false"
        )
    return to_label(class_name)
