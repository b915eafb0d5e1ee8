"""What is kept of an unfinished folder of shards: every row once, and nothing damaged."""

import numpy as np
import pytest

from ka_ray.features.standing import settle_shards, shard_ids
from ka_ray.features.store import Store, finish_folder, write_shard


def rows(*ids: int) -> dict[str, np.ndarray]:
    image_ids = np.array(ids)
    return {
        "image_id": image_ids,
        "image": image_ids[:, None].astype(np.uint8),
        "label": np.array(["x"] * len(ids)),
    }


def test_whole_shards_stay_and_half_written_ones_go(tmp_path):
    size = write_shard(tmp_path, rows(3, 1, 2)) + write_shard(tmp_path, rows(7, 8))
    (tmp_path / ".000.arrow.part").write_bytes(b"half")
    standing = settle_shards(tmp_path)
    assert standing.ids.tolist() == [1, 2, 3, 7, 8]
    assert (standing.num_bytes, standing.doubled, standing.damaged) == (size, 0, ())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten"])
def test_a_damaged_shard_goes_and_its_rows_count_as_missing(tmp_path, damage):
    write_shard(tmp_path, rows(0, 1, 2))
    write_shard(tmp_path, rows(5, 6))
    shard = max(tmp_path.glob("*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(
        {"truncated": content[:-20], "emptied": b"", "overwritten": b"x" * len(content)}[damage]
    )
    standing = settle_shards(tmp_path)
    assert standing.ids.tolist() == [0, 1, 2]
    assert standing.damaged == (shard.name,)
    assert not shard.exists()


def test_rows_that_stand_twice_are_removed_with_their_shard(tmp_path):
    for ids in ((0, 1, 2), (2, 3), (4, 5)):  # the middle one shares a row with the first
        write_shard(tmp_path, rows(*ids))
    standing = settle_shards(tmp_path)
    assert standing.ids.tolist() == [0, 1, 2, 4, 5]
    assert standing.doubled == 1
    finish_folder(tmp_path, {})
    assert Store(tmp_path).image_ids.tolist() == [0, 1, 2, 4, 5]


def test_the_ids_of_a_shard_are_those_that_the_store_reads(tmp_path):
    write_shard(tmp_path, rows(9, 4, 6))
    assert shard_ids(next(tmp_path.glob("*.arrow"))).tolist() == [9, 4, 6]
