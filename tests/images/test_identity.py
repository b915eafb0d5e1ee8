"""Test which changes of a list of images are found and counted, against plain sets of paths and sizes."""

import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_makers import LABELS, MAKERS, load

from ka_ray.images import open_source
from ka_ray.images.identity import Changes, find_changes, identify

pytestmark = pytest.mark.usefixtures("small_chunks")

Listed = list[tuple[str, str, int]]


def count_changes(old: Listed, new: Listed) -> tuple[int, int, int]:
    before, now = ({place: rest for place, *rest in one} for one in (old, new))
    changed = sum(before[place] != now[place] for place in before.keys() & now.keys())
    return len(now.keys() - before.keys()), len(before.keys() - now.keys()), changed


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_changes_equal_those_of_plain_sets(seed):
    rng = random.Random(seed)
    old = [(f"photos/{i}.png", rng.choice("ab"), rng.randrange(1000)) for i in range(300)]
    new = [item for item in old if rng.random() < 0.9]
    new = [
        (place, rng.choice("abc"), size) if rng.random() < 0.1 else (place, text, size)
        for place, text, size in new
    ]
    new = [(place, text, size + (rng.random() < 0.1)) for place, text, size in new]
    new += [(f"photos/new {i}.png", "", 5) for i in range(rng.randrange(20))]
    found = find_changes(identify(old), identify(new))
    assert (found.added, found.removed, found.changed) == count_changes(old, new)
    assert found
    assert not found.moved
    assert not find_changes(identify(old), identify(list(old)))


def test_another_order_is_a_change():
    old = [(f"{i}.png", "", i) for i in range(9)]
    assert find_changes(identify(old), identify(old[::-1])) == Changes(0, 0, 0, moved=True)
    assert find_changes(identify(old), identify([*old, old[0]])).moved  # one image twice


def test_rows_of_an_item_are_different_images():
    found = identify([("a", "", 1), ("b", "", 2)], [1000, 500])
    assert len(np.unique(found.places)) == 1500
    more = identify([("a", "", 1), ("b", "", 2)], [1000, 510])
    assert find_changes(found, more) == Changes(added=10, removed=0, changed=0, moved=False)


@pytest.fixture(params=MAKERS)
def tree(request, pictures):
    return MAKERS[request.param](pictures)


def test_every_source_identifies_each_image_alike_in_every_listing(tree):
    first, second = open_source(load(tree)), open_source(load(tree))
    assert len(np.unique(first.identities.places)) == first.num_images == len(LABELS)
    assert not find_changes(first.identities, second.identities)


def test_an_image_of_a_mixture_is_that_of_its_part(tree):
    whole = open_source(load(tree)).identities
    parts = [{"source": "digits", "limit": 5}, {**tree, "limit": 7}]
    mixed = open_source(load({"source": "mixed", "parts": parts})).identities
    assert len(mixed.places) == 12
    mixed = mixed.take(np.arange(5, 12))
    assert find_changes(whole, mixed) == Changes(added=0, removed=5, changed=0, moved=False)


def test_files_are_added_removed_and_changed(pictures):
    tree = MAKERS["folder"](pictures)
    old = open_source(load(tree)).identities
    for i in range(3):
        shutil.copy(pictures.folder / pictures.names[0], pictures.folder / f"dog/new {i}.png")
    (pictures.folder / pictures.names[1]).unlink()
    with (pictures.folder / pictures.names[2]).open("ab") as file:
        file.write(b"more")
    found = find_changes(old, open_source(load(tree)).identities)
    assert found == Changes(added=3, removed=1, changed=1, moved=False)
    assert str(found) == "3 images added, 1 removed, 1 changed (size or label)"


def test_new_times_are_no_change(pictures):
    """Copying a folder to another disk, or a checkout, gives files other times."""
    tree = MAKERS["folder"](pictures)
    old = open_source(load(tree)).identities
    for name in pictures.names:
        os.utime(pictures.folder / name, (0, 0))
    assert not find_changes(old, open_source(load(tree)).identities)


def test_a_missing_file_of_a_list_that_appears_is_a_change(pictures):
    tree, path = MAKERS["list"](pictures), pictures.folder / pictures.names[3]
    path.rename(path.with_suffix(".hidden"))
    old = open_source(load(tree)).identities
    path.with_suffix(".hidden").rename(path)
    assert find_changes(old, open_source(load(tree)).identities).changed == 1


def test_a_row_group_of_another_size_is_a_change(pictures):
    tree = MAKERS["parquet"](pictures)
    old = open_source(load(tree)).identities
    contents = [pictures.contents[0] + b"more", *pictures.contents[1:]]
    pq.write_table(pa.table({"image": contents, "label": LABELS}), tree["path"], row_group_size=5)
    assert find_changes(old, open_source(load(tree)).identities).changed == 5


def test_a_file_in_the_folder_of_another_job_is_the_same_image():
    folders = (f"/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_{i}" for i in "ab")
    first, second = (identify([(f"{folder}/photos/1.png", "", 1)]) for folder in folders)
    assert not find_changes(first, second)


def test_files_in_a_bucket_have_the_sizes_of_its_list(s3, pictures):
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).put(str(pictures.folder), f"{s3}/", recursive=True)
    remote = open_source(load({"source": "folder", "path": f"{s3}/pictures"}))
    sizes = [size for chunk in remote.chunks for size in chunk.stamps]
    assert sizes == [len(content) for content in pictures.contents]
