"""Every source lists its labels before images are read: those that come with the images afterwards."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_makers import LABELS, MAKERS, Pictures, load, make_list, make_parquet, make_shards, read

from ka_ray.config import DigitsImages
from ka_ray.errors import InputError
from ka_ray.images import open_source, sample_ids
from ka_ray.images.split import ImageSet, check_labels, count_labels

pytestmark = pytest.mark.usefixtures("small_chunks")

EVERY_MAKER = pytest.mark.parametrize("kind", [*MAKERS])


def list_labels(config: Any) -> list[str] | None:
    source = open_source(config)
    return None if source.list_labels is None else source.list_labels(source.chunks)


@EVERY_MAKER
def test_labels_are_listed_as_they_are_read(pictures: Pictures, kind: str) -> None:
    config = load(MAKERS[kind](pictures))
    assert list_labels(config) == read(config)["label"].tolist() == LABELS


@EVERY_MAKER
def test_labels_of_some_chunks_are_those_of_their_images(pictures: Pictures, kind: str) -> None:
    source = open_source(load(MAKERS[kind](pictures)))
    assert source.list_labels is not None
    for chunk in source.chunks[1:]:
        own = LABELS[chunk.first_id : chunk.first_id + chunk.num_images]
        assert source.list_labels([chunk]) == own


@EVERY_MAKER
def test_unlabelled_images_are_listed_without_labels(pictures: Pictures, kind: str) -> None:
    tree = MAKERS[kind](pictures)
    keys = {"label_column": None, "label_key": None, "classes": None}
    tree = {key: value for key, value in tree.items() if key not in keys}
    config = load(tree, **({"labelled": False} if kind in ("folder", "torchvision") else {}))
    assert list_labels(config) == [""] * len(LABELS)


def test_digits_list_their_labels() -> None:
    config = DigitsImages(source="digits", split="test")
    assert list_labels(config) == read(config)["label"].tolist()


def test_a_mixture_lists_the_labels_of_what_its_parts_contribute(pictures: Pictures) -> None:
    parts: list[dict[str, Any]] = [make(pictures) for make in (make_list, make_parquet, make_shards)]
    parts[0]["limit"], parts[1]["limit"] = 7, 3
    config = load({"source": "mixed", "parts": parts})
    labels = list_labels(config)
    assert labels == read(config)["label"].tolist()
    assert len(labels or []) == 7 + 3 + 12


def test_shards_at_a_uri_are_not_read_for_their_labels(pictures: Pictures) -> None:
    tree = make_shards(pictures)
    config = load(tree, path=f"file://{tree['path']}")
    assert list_labels(config) is None
    images = ImageSet(config, open_source(config), np.arange(12))
    assert count_labels(images) is None


def test_labels_are_counted_of_the_chosen_images_only(pictures: Pictures) -> None:
    config = load(make_parquet(pictures))
    ids = sample_ids(12, 5, seed=1)
    counts = count_labels(ImageSet(config, open_source(config), ids))
    assert counts == Counter(LABELS[i] for i in ids)


@pytest.mark.parametrize("maker", [make_list, make_parquet])
def test_a_class_without_an_image_is_refused_before_anything_is_read(pictures: Pictures, maker: Any) -> None:
    config = load(maker(pictures))
    images = ImageSet(config, open_source(config), np.arange(12))
    assert check_labels(["cat", "dog"], images, "teacher a") == Counter(LABELS)
    with pytest.raises(
        InputError,
        match=r"^teacher a: no image is labelled 'Cat', 'cow'; the labels are 'cat', 'dog', 'fish'\. Class ",
    ):
        check_labels(["Cat", "dog", "cow"], images, "teacher a")


def test_an_integer_label_beyond_the_classes_is_found_before_anything_is_read(pictures: Pictures) -> None:
    path = Path(pictures.folder) / "list.csv"
    path.write_text("path,label\n" + "".join(f"{name},{i}\n" for i, name in enumerate(pictures.names[:3])))
    tree = {"source": "list", "path": str(path), "label_column": "label", "classes": ["cat", "dog"]}
    with pytest.raises(InputError, match="label 2 found, but only 2 classes"):
        open_source(load(tree))
