"""Which image is which: two numbers per image, by which listings of different days and sources are compared.

A digest of the whole list would say that something has changed, but not how much. Paths of a million images
would take 60 MB and more; these numbers take 16 MB.

Shapes: n images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from ka_ray.config import JOB_FOLDERS

Words = npt.NDArray[np.uint64]

_ROW_STEP = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: its multiples are all different modulo 2^64, so rows of one item get different numbers."""


@dataclass(frozen=True)
class Identities:
    """Identities of images, in the order of their ids.

    Attributes:
        places: Hash of where each image is, such as its path; ``[n]``.
        stamps: What differs if another image is at the same place: a hash of its size and label; ``[n]``.
    """

    places: Words
    stamps: Words

    def take(self, rows: npt.NDArray[np.int64]) -> "Identities":
        """Return the identities of some images, by their row numbers."""
        return Identities(self.places[rows], self.stamps[rows])


@dataclass(frozen=True)
class Changes:
    """How one list of images differs from an earlier one.

    Attributes:
        added: Number of images at places where there was none.
        removed: Number of images whose place is not in the list any more.
        changed: Number of images at the same place with another size or label.
        moved: Whether the images, or those that are in both lists, are in another order or repeated.
    """

    added: int
    removed: int
    changed: int
    moved: bool

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.added or self.removed or self.changed or self.moved)

    def __str__(self) -> str:
        """Return a phrase for the user."""
        noun = "image" if self.added == 1 else "images"
        counts = f"{self.added} {noun} added, {self.removed} removed, {self.changed} changed (size or label)"
        only_moved = self.moved and not (self.added or self.removed or self.changed)
        return "the same images in another order" if only_moved else counts


def identify(items: Iterable[tuple[str, str, int]], num_images: Iterable[int] | None = None) -> Identities:
    """Compute the identities of listed items, each of which holds one or more images.

    Args:
        items: Of each item its place, its label or another text that changes with it, and a number that
            does, such as its size in bytes; -1 if there is none.
        num_images: The number of images of each item; None: one each.
    """
    listed = list(items)
    places = _to_words(hash_text(place) for place, *_ in listed)
    texts = _to_words(_hash_label(text) for _, text, _ in listed)
    sizes = np.array([size for *_, size in listed], np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        stamps = texts ^ (sizes * _ROW_STEP)
        if num_images is None:
            return Identities(places, stamps)
        counts = np.fromiter(num_images, np.int64)
        rows = np.concatenate([np.arange(count, dtype=np.uint64) for count in counts])
        offsets: Words = rows * _ROW_STEP
        return Identities(np.repeat(places, counts) + offsets, np.repeat(stamps, counts))


def join(parts: Iterable[Identities]) -> Identities:
    """Join the identities of several groups of images, one behind the other."""
    listed = list(parts)
    places = np.concatenate([part.places for part in listed])
    return Identities(places, np.concatenate([part.stamps for part in listed]))


def find_changes(old: Identities, new: Identities) -> Changes:
    """Compare the list of images of now with an earlier one.

    Args:
        old: The identities of the earlier list, ``[m]``.
        new: The identities of the list of now, ``[n]``.
    """
    was_there, is_there = np.isin(new.places, old.places), np.isin(old.places, new.places)
    same = np.isin(_join_words(new), _join_words(old))
    return Changes(
        added=int((~was_there).sum()),
        removed=int((~is_there).sum()),
        changed=int((was_there & ~same).sum()),
        moved=not np.array_equal(new.places[was_there], old.places[is_there]),
    )


def _join_words(images: Identities) -> Words:
    with np.errstate(over="ignore"):
        return images.places * _ROW_STEP ^ images.stamps


def _to_words(hashes: Iterable[bytes]) -> Words:
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


def hash_text(text: str) -> bytes:
    """Return 8 bytes that depend on a text; of a file sent with a job, not on the job's folder."""
    # The substring is found faster than the pattern, and there are millions of paths.
    plain = JOB_FOLDERS.sub("", text) if "working_dir_files" in text else text
    # Names of files may be of any encoding, which Python keeps as surrogates.
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()


_hash_label = lru_cache(maxsize=65536)(hash_text)  # there are far fewer labels than images
