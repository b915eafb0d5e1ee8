"""Refuse to continue a run whose images are listed differently now.

An image's id is its position in the list of images. Which images are learned from and which are held out to
evaluate is drawn from these ids, while features, teachers and students that an earlier attempt has finished
are reused. After a change of the list, the images that are now held out may be those that were learned from.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.identity import Identities, find_changes
from ka_ray.images.split import ImageSet
from ka_ray.numerics.tensor_file import load_tensors
from ka_ray.runs.execution import is_stored
from ka_ray.runs.extension import TEACHERS
from ka_ray.runs.gate_samples import HINTS
from ka_ray.runs.output_folder import CONFIG, DIGESTS, MERGE_CONFIG
from ka_ray.runs.output_lock import LOCK
from ka_ray.runs.trials import DATA, HELD_OUT
from ka_ray.storage.files import atomic_file, exists, read_json

LISTINGS = "listings.safetensors"
"""The file in an output folder with the identities of all images of each source, by id."""

PLACES, STAMPS = ":places", ":stamps"
"""Endings of the names of the arrays in that file; before them stands the config key of the source."""

LISTING_FILE = "listing.json"
"""The file in a folder of shards with the digest of the list of images that it was stored from."""

IMAGES_KEY, EVALUATION_KEY, HINTS_KEY = "images", "evaluation.images", "scores.hints"
"""Config keys of the sources of a run."""

STORED_PARTS = {
    IMAGES_KEY: (FEATURES, IMAGES, f"{TEACHERS}/{IMAGES}", f"{DATA}/{IMAGES}", HELD_OUT),
    HINTS_KEY: (HINTS,),
}
"""Config key of a source -> the folders in an output folder that hold images of it."""


BEFORE_RESULTS = (LISTINGS, CONFIG, MERGE_CONFIG, DIGESTS, LOCK, "run.log", "errors.log", "ray")
"""Names in an output folder of what is there before anything is finished, beside what MLflow keeps."""

MLFLOW_PREFIXES = ("mlflow", "mlartifacts")
"""How the names begin of what MLflow keeps in an output folder, and of the ids of its runs."""


def list_sources(
    training: ImageSet, evaluation: ImageSet, hints: ImageSet | None = None
) -> dict[str, ImageSet]:
    """Return the sources that a command uses: config key -> images of it.

    Args:
        training: The training images.
        evaluation: The evaluation images; often of the same source.
        hints: The images of ``scores.hints``; None without them.
    """
    sources = {IMAGES_KEY: training}
    if evaluation.source is not training.source:
        sources[EVALUATION_KEY] = evaluation
    return sources if hints is None else sources | {HINTS_KEY: hints}


def check_listings(folder: Path, sources: Mapping[str, ImageSet]) -> None:
    """Refuse to continue if the list of images has changed since the first attempt, or keep the list.

    Args:
        folder: The output folder.
        sources: What :func:`list_sources` returns.

    Raises:
        InputError: The list of a source differs from that of an earlier attempt in this output folder; the
            message says how many images were added, removed and changed.
    """
    known = load_listings(folder)
    new = {key: images.source.identities for key, images in sources.items()}
    for key, listing in new.items():
        if key not in known:
            _check_stored(folder, key, sources[key])
        elif (changes := find_changes(known[key], listing)) and _has_results(folder):
            raise _refusal(
                folder, key, f"{changes}; {len(known[key].places)} then, {len(listing.places)} now"
            )
        elif changes:  # a damaged image was repaired, say, before anything was learned
            known.pop(key)
    if not new.keys() <= known.keys():
        save_listings(folder, known | new)


def _has_results(folder: Path) -> bool:
    """Return whether an earlier attempt has finished anything that would be reused."""
    parts = [part for parts in STORED_PARTS.values() for part in parts]
    if any(is_stored(folder / part) for part in parts):
        return True
    others = (path.name for path in folder.iterdir() if path.name not in (*BEFORE_RESULTS, *parts))
    return any(not name.startswith(MLFLOW_PREFIXES) for name in others)


def load_listings(folder: Path) -> dict[str, Identities]:
    """Return the lists of images that an output folder keeps: config key -> identities of the images.

    Args:
        folder: The output folder. Earlier versions of ka_ray have kept no lists.

    Raises:
        InputError: The file is damaged.
    """
    if not exists(folder / LISTINGS):
        return {}
    arrays = {name: tensor.numpy() for name, tensor in load_tensors(folder / LISTINGS).items()}
    listings = {}
    for name in (name for name in arrays if name.endswith(PLACES)):
        places, stamps = arrays[name], arrays.get(name.removesuffix(PLACES) + STAMPS)
        if stamps is None or not (places.dtype == stamps.dtype == np.uint64 and places.shape == stamps.shape):
            raise InputError(f"{folder / LISTINGS} is damaged: it holds no lists of images")
        listings[name.removesuffix(PLACES)] = Identities(places, stamps)
    return listings


def save_listings(folder: Path, listings: Mapping[str, Identities]) -> None:
    """Keep lists of images in an output folder: config key -> identities of the images."""
    arrays = {key + PLACES: listing.places for key, listing in listings.items()}
    arrays |= {key + STAMPS: listing.stamps for key, listing in listings.items()}
    with atomic_file(folder / LISTINGS) as part:
        part.write_bytes(save(arrays))


def _check_stored(folder: Path, key: str, images: ImageSet) -> None:
    """Compare with what an earlier version of ka_ray has stored, which kept only a digest of the list."""
    for part in STORED_PARTS.get(key, ()):
        file = folder / part / LISTING_FILE
        if not (is_stored(folder / part) and exists(file)):
            continue
        if read_json(file)["sha256"] != images.source.digest:
            raise _refusal(folder, key, f"{folder / part} holds images of another list")


def _refusal(folder: Path, key: str, what: str) -> InputError:
    if key == EVALUATION_KEY:
        advice = "Evaluate the student on the images of now with ka-ray evaluate, or give another --output"
    elif key == HINTS_KEY:
        advice = "The gate was learned from the hints of then: give another --output"
    else:
        advice = (
            "Which images are held out is drawn from the list, so the student would be judged on images that "
            "it has learned from. Give another --output to use the images of now, or restore those of then"
        )
    return InputError(
        f"{key}: the list of images has changed since the run in {folder} began: {what}. {advice}"
    )
