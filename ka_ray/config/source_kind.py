"""Guess the kind of an image source from its path; imports nothing that takes time to load."""

from pathlib import Path

SAVED_SPLITS = "dataset_dict.json"
"""The file that marks a folder as a saved DatasetDict of Hugging Face's ``datasets``."""

SAVED_STATE = "state.json"
"""The file that marks a folder as a saved Dataset of Hugging Face's ``datasets``."""


def guess_source(path: Path) -> str:
    """Return the kind of source that a path looks like; ``folder`` if nothing else.

    Args:
        path: A list of images (``.csv``, ``.tsv``), a Parquet file or a folder of them, a tar shard or a
            folder of them, a folder that Hugging Face's ``save_to_disk`` has written, or one of image files.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "list"
    if suffix == ".parquet" or any(path.glob("*.parquet")):
        return "parquet"
    # A folder with subfolders, too, is more likely that of a dataset beside the tar file that it came in.
    if suffix == ".tar" or (any(path.glob("*.tar")) and not any(entry.is_dir() for entry in path.iterdir())):
        return "webdataset"
    return "datasets" if any((path / name).is_file() for name in (SAVED_STATE, SAVED_SPLITS)) else "folder"
