"""Every kind of source is read by Ray's tasks as without Ray."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ka_ray.config import ScoresConfig
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.resources import Pools
from ka_ray.features.store import Store
from ka_ray.images import open_source
from ka_ray.images.split import ImageSet
from ka_ray.teachers.reading import ReadSpec

sys.path.append(str(Path(__file__).parents[1] / "images"))
from source_makers import MAKERS, load, read, write_pictures

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_mixture_of_all_kinds_gives_the_same_rows_as_a_plain_loop(cluster, tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    config = load({"source": "mixed", "parts": [make(pictures) for make in MAKERS.values()]}, size=8)
    source = open_source(config)
    work = Extraction(ImageSet(config, source, np.arange(source.num_images)), tmp_path / "out", 20)
    summary = extract_features(work, [], Pools(), ReadSpec({}, {}, ScoresConfig()), lambda _: None)
    assert summary["images"] == 12 * len(MAKERS)
    store = Store(tmp_path / "out")
    order = np.argsort(store.image_ids)
    columns = store.gather(["image"], np.arange(len(store)))
    np.testing.assert_array_equal(np.asarray(columns["image"])[order], read(config)["image"])
