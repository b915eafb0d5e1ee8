"""The image source of WebDataset's tar shards.

The headers of the shards are read once, when the source is listed; workers then read each member at its
position. An image's id is the number of its sample, counted over the sorted shards. Not
``ray.data.read_webdataset``: it does not number samples, so no id would stay the same, and every selection of
images would read whole shards.
"""

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ka_ray.config import WebDatasetImages
from ka_ray.errors import InputError
from ka_ray.images.cells import or_raise, text_to_label, to_label
from ka_ray.images.folder import SUFFIXES
from ka_ray.images.hidden_files import HiddenFiles, find_files
from ka_ray.images.identity import Identities, identify
from ka_ray.images.sources import Chunk, EncodedImage, Source, list_no_labels
from ka_ray.storage.batch_read import read_ranges
from ka_ray.storage.file_names import printable
from ka_ray.storage.files import MAX_PARALLEL_REQUESTS, get_filesystem, is_remote
from ka_ray.storage.read_errors import read_again, to_user_error

CHUNK_IMAGES = 64
"""Number of images per chunk: their encoded files are in memory at the same time."""

REMOTE_BLOCK_BYTES = 4 * 1024**2
"""How much of a remote shard is fetched at a time while its headers are read: a request for each header would
take longer than reading over small images."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
"""First bytes of compressed files."""

JSON = "json."
"""Beginning of a label key that names an entry of a sample's JSON member."""

Range = tuple[int, int]
"""Position of a member's first byte in its shard, and its size in bytes; (0, 0) if there is no member."""

Sample = tuple[str, Range, Range]
"""Key, image and label of a sample. Plain tuples: they are small to send, and digests hash their repr."""


def list_webdataset(config: WebDatasetImages) -> Source:
    """List the samples of all shards; only the headers are read, and samples without an image are left out.

    Args:
        config: The config's ``images`` section.

    Raises:
        InputError: No shard matches, one is compressed or damaged, or no sample has the image that the config
            names.
    """
    paths, notes = find_files(config.path, config.files)
    chunks: list[Chunk] = []
    first_id, without_image, other, hidden = 0, 0, set[str](), HiddenFiles()
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS if is_remote(paths[0]) else 1) as pool:
        for path, (samples, left_out, hidden_there) in zip(
            paths, pool.map(lambda p: _index_again(p, config), paths), strict=True
        ):
            for start in range(0, len(samples), CHUNK_IMAGES):
                part = samples[start : start + CHUNK_IMAGES]
                chunks.append(Chunk(first_id, len(part), (str(path), part)))
                first_id += len(part)
            hidden.add(hidden_there)
            without_image += len(left_out)
            other.update(*left_out)
    if not chunks:
        raise InputError(
            f"images.image_key: no sample of {config.path} has an image "
            f"{config.image_key or ''}; its members end in {', '.join(sorted(other)) or 'nothing'}"
        )
    if config.label_key is not None and not any(
        sample[2][1] for chunk in chunks for sample in chunk.payload[1]
    ):
        raise InputError(f"images.label_key: no sample of {config.path} has a member {config.label_key!r}")
    without = f"left out {without_image} samples without an image" if without_image else ""
    notes += [f"{config.path}: {note}" for note in (without, hidden.note) if note]
    names = config.classes if config.label_key is not None else None
    reader = WebDatasetReader(config.label_key, config.classes)
    # Each label is a small file of its own: too many requests, if the shards are remote.
    list_labels = None if config.label_key is not None and is_remote(paths[0]) else reader.list_labels
    return Source(chunks, reader, names, "; ".join(notes), list_labels, identify_members)


def identify_members(chunk: Chunk) -> Identities:
    """Identify samples by shard and key; with members of other sizes, a sample is another image."""
    path, samples = chunk.payload
    return identify((f"{path} {key}", str(label[1]), image[1]) for key, image, label in samples)


Index = tuple[list[Sample], list[list[str]], HiddenFiles]
"""The samples of a shard, the extensions of each sample that has no image, and the members left out."""


def _index_again(path: Path, config: WebDatasetImages) -> Index:
    """Index a shard, several times if the machine could not read it."""
    try:
        return read_again(lambda: _index(path, config))
    except OSError as error:
        raise to_user_error(error, path) from None


def _index(path: Path, config: WebDatasetImages) -> Index:
    label_key = "json" if (config.label_key or "").startswith(JSON) else config.label_key
    samples, hidden = list[Sample](), HiddenFiles()
    left_out: list[list[str]] = []
    # As in WebDataset, a sample is a run of members with the same key.
    for key, run in groupby(_members(path, hidden), key=lambda member: member[0]):
        found = {extension: where for _, extension, where in run}
        image = _choose_image(list(found), path, key, config)
        if image is None:
            left_out.append(list(found))
        else:
            samples.append((printable(key), found[image], found.get(label_key or "", (0, 0))))
    return samples, left_out, hidden


def _choose_image(extensions: list[str], path: Path, key: str, config: WebDatasetImages) -> str | None:
    """Return the extension of a sample's image; None if it has none."""
    if config.image_key is not None:
        return next((name for name in config.image_key.lower().split(";") if name in extensions), None)
    images = [name for name in extensions if f".{name.rpartition('.')[2]}" in SUFFIXES]
    if len(images) > 1:
        raise InputError(
            f"images.image_key: sample {printable(key)} of {path} has several images, {', '.join(images)}; "
            "set image_key to one of them"
        )
    return images[0] if images else None


def _members(path: Path, hidden: HiddenFiles) -> Iterator[tuple[str, str, Range]]:
    """Yield key, extension and position of each file in a shard; hidden files are left out."""
    try:
        with _open(path) as file:
            _refuse_compressed(file, path)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps an object per member
                    folder, slash, name = member.name.rpartition("/")
                    stem, dot, extension = name.partition(".")
                    parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
                    if not member.isreg() or any(map(hidden, parts)):
                        continue
                    if not member.issparse() and dot:
                        yield f"{folder}{slash}{stem}", extension.lower(), (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"images.path: {path} is not a tar file, or damaged: {error}") from None


def _open(path: Path) -> Any:
    if not is_remote(path):
        return path.open("rb")
    fs, name = get_filesystem(path)
    return fs.open(name, "rb", cache_type="readahead", block_size=REMOTE_BLOCK_BYTES)


def _refuse_compressed(file: Any, path: Path) -> None:
    beginning = file.read(8)
    file.seek(0)
    for magic, name in COMPRESSED.items():
        if beginning.startswith(magic):
            raise InputError(
                f"images.path: {path} is compressed with {name}; decompress it, because images are read at "
                "their positions in the tar file (and are compressed themselves)"
            )


@dataclass(frozen=True)
class WebDatasetReader:
    """Reads samples by their offsets; an object and not a closure, because it is pickled for workers.

    Attributes:
        label_key: Extension of the labels, or ``json.NAME``; None if the images are unlabelled.
        classes: Names of the classes, into which integer labels are indices; None if the labels are names.
    """

    label_key: str | None
    classes: tuple[str, ...] | None

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
        """Yield the wanted samples of a chunk."""
        path, samples = chunk.payload
        chosen = [(i, sample) for i, sample in enumerate(samples, chunk.first_id) if wanted(i)]
        parts = read_ranges(path, [place for _, sample in chosen for place in sample[1:]])
        for image_id, (key, _, (_, label_bytes)) in chosen:
            name = f"{path}, sample {key}"
            content, label = or_raise(next(parts), name), or_raise(next(parts), name)
            yield EncodedImage(image_id, name, content, self._label(label, name) if label_bytes else "")

    def list_labels(self, chunks: Sequence[Chunk]) -> list[str]:
        """Return the labels of the samples of chunks, which are read at their positions."""
        if self.label_key is None:
            return list_no_labels(chunks)
        labels = []
        for path, samples in (chunk.payload for chunk in chunks):
            contents = read_ranges(path, [place for _, _, place in samples])
            for (key, _, (_, num_bytes)), content in zip(samples, contents, strict=True):
                name = f"{path}, sample {key}"
                labels.append(self._label(or_raise(content, name), name) if num_bytes else "")
        return labels

    def _label(self, content: bytes, name: str) -> str:
        assert self.label_key is not None
        try:
            if not self.label_key.startswith(JSON):
                text = content.decode().strip()
                if self.classes is None and text.lstrip("-").isdecimal():
                    return to_label(int(text))  # which asks for the names of the classes
                return text_to_label(text, self.classes)
            value = json.loads(content)
            for key in self.label_key.removeprefix(JSON).split("."):
                value = value.get(key) if isinstance(value, dict) else None
            return to_label(value, self.classes)
        except (ValueError, InputError) as error:
            raise InputError(f"images.label_key: label of {name}: {error}") from None
