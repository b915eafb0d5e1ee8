"""What every kind of source must do: stable ids, the same pixels as a plain loop, pickling, mixing."""

import pickle
from typing import get_args

import numpy as np
import pytest
from source_makers import CLASSES, LABELS, MAKERS, SIZE, load, read

from ka_ray.config import DigitsImages, PlainImages
from ka_ray.images import open_source
from ka_ray.images.mixed import PLAIN_SOURCES

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(params=MAKERS)
def tree(request, pictures):
    return MAKERS[request.param](pictures)


def test_every_source_is_tested_here():
    kinds = {kind.model_fields["source"].annotation for kind in {*PLAIN_SOURCES} - {DigitsImages}}
    assert {get_args(kind)[0] for kind in kinds} == MAKERS.keys()
    assert {*PLAIN_SOURCES} == {*get_args(PlainImages)}


def test_ids_count_from_zero_and_pixels_equal_a_plain_loop(tree, pictures):
    columns = read(load(tree))
    assert columns["image_id"].tolist() == list(range(len(LABELS)))
    assert columns["label"].tolist() == LABELS
    np.testing.assert_array_equal(columns["image"], pictures.pixels())


def test_chunks_have_no_gaps(tree):
    source = open_source(load(tree))
    counts = [chunk.num_images for chunk in source.chunks]
    assert [chunk.first_id for chunk in source.chunks] == [0, *np.cumsum(counts)[:-1]]
    assert len(counts) > 1
    assert source.class_names in (None, CLASSES)


@pytest.mark.parametrize("ids", [[0], [11], [4, 5, 9], [1, 3, 10, 11]], ids=str)
def test_reading_some_ids_gives_rows_of_the_whole(tree, ids):
    whole, some = read(load(tree)), read(load(tree), ids)
    for name, column in whole.items():
        np.testing.assert_array_equal(some[name], column[ids])


def test_chunks_and_reader_survive_pickling(tree):
    source = open_source(load(tree))
    chunks, reader = pickle.loads(pickle.dumps((source.chunks, source.read)))
    found = [(image.image_id, image.label) for chunk in chunks for image in reader(chunk, lambda _: True)]
    assert found == list(enumerate(LABELS))


def test_the_digest_is_the_same_in_every_listing(tree):
    assert open_source(load(tree)).digest == open_source(load(tree)).digest


def test_a_dumped_config_loads_again(tree):
    config = load(tree)
    assert load(config.model_dump(mode="json")) == config


def test_all_kinds_can_be_parts_of_one_mixture_with_limits(pictures):
    parts = [make(pictures) for make in MAKERS.values()]
    whole = read(load({"source": "mixed", "parts": parts}))
    assert whole["label"].tolist() == LABELS * len(parts)
    np.testing.assert_array_equal(whole["image"], np.concatenate([pictures.pixels()] * len(parts)))
    some = read(
        load({"source": "mixed", "parts": [{**part, "limit": n + 1} for n, part in enumerate(parts)]})
    )
    assert some["image"].shape == (sum(range(len(parts) + 1)), 3, SIZE, SIZE)
