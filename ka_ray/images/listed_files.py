"""Image files whose paths and labels are listed: what the sources `folder` and `list` share."""

from collections.abc import Callable, Iterator, Sequence

from ka_ray.images.cells import or_raise
from ka_ray.images.identity import Identities, identify
from ka_ray.images.sources import Chunk, EncodedImage
from ka_ray.storage.batch_read import read_files
from ka_ray.storage.file_names import printable

CHUNK_IMAGES = 64
"""Number of images per chunk: their encoded files are in memory at the same time."""


def split_into_chunks(entries: Sequence[tuple[str, ...]], sizes: Sequence[int]) -> list[Chunk]:
    """Divide a list of image files into chunks.

    Args:
        entries: Path or URI, label and, if owners are known, owner of each image. Strings, not Path objects:
            they are small to send to workers, and :attr:`ka_ray.images.Source.digest` hashes their repr.
        sizes: Size of each file in bytes; -1 if it is not known.
    """
    starts = range(0, len(entries), CHUNK_IMAGES)
    parts = [(i, entries[i : i + CHUNK_IMAGES], sizes[i : i + CHUNK_IMAGES]) for i in starts]
    return [Chunk(first_id, len(part), part, tuple(stamps)) for first_id, part, stamps in parts]


def identify_listed_files(chunk: Chunk) -> Identities:
    """Identify files by their paths; a file of another size, or with another label, is another image."""
    entries = zip(chunk.payload, chunk.stamps, strict=True)
    return identify((path, "\n".join(texts), size) for (path, *texts), size in entries)


def labels_of_files(chunks: Sequence[Chunk]) -> list[str]:
    """Return the labels of image files, which are listed with them.

    Args:
        chunks: Chunks of :func:`split_into_chunks`.
    """
    return [label for chunk in chunks for _, label, *_ in chunk.payload]


def read_listed_files(chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
    """Yield the wanted files of a chunk; a file that cannot be opened has empty content.

    Args:
        chunk: A chunk of :func:`split_into_chunks`.
        wanted: Whether to read the image with this id.

    Raises:
        ConnectionError: The network failed, not the file; the caller may try again.
        TimeoutError: The network did not answer; the caller may try again.
        ReadError: The machine or its disk could not read a file, not even when tried again.
        InputError: The permission to read a file is missing.
    """
    chosen = [
        (chunk.first_id + offset, path, texts)
        for offset, (path, *texts) in enumerate(chunk.payload)
        if wanted(chunk.first_id + offset)
    ]
    contents = read_files([path for _, path, _ in chosen])
    for (image_id, path, texts), content in zip(chosen, contents, strict=True):
        # The decoder refuses empty content, so the image is counted as unreadable under its name.
        yield EncodedImage(image_id, printable(path), or_raise(content, printable(path)), *texts)
