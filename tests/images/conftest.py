"""Fixtures of the tests of image sources."""

import pytest
from source_makers import Pictures, write_pictures

from ka_ray.images import listed_files, saved_datasets, torchvision_datasets, webdataset


@pytest.fixture
def pictures(tmp_path) -> Pictures:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    for module in (listed_files, saved_datasets, webdataset, torchvision_datasets):
        monkeypatch.setattr(module, "CHUNK_IMAGES", 5)
