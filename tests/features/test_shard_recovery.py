"""Test that recovery keeps each row of an unfinished folder once and removes damaged shards."""

import errno
from pathlib import Path

import numpy as np
import pytest
import s3fs

from ka_ray.features import shard_recovery
from ka_ray.features.shard_recovery import read_image_ids, recover_shards
from ka_ray.features.store import SHARDS_KEY, Store, mark_folder_finished, write_shard
from ka_ray.storage.uris import to_path


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """Return an empty folder, on the local disk or on S3."""
    return tmp_path if request.param == "local" else to_path(f"{request.getfixturevalue('s3')}/features")


def make_rows(*ids: int) -> dict[str, np.ndarray]:
    image_ids = np.array(ids)
    return {
        "image_id": image_ids,
        "image": image_ids[:, None].astype(np.uint8),
        "label": np.array(["x"] * len(ids)),
    }


def test_complete_shards_are_kept_and_partly_written_ones_removed(folder):
    size = write_shard(folder, make_rows(3, 1, 2)) + write_shard(folder, make_rows(7, 8))
    (folder / ".000.arrow.part").write_bytes(b"half")
    recovered = recover_shards(folder)
    assert recovered.ids.tolist() == [1, 2, 3, 7, 8]
    assert (recovered.num_bytes, recovered.duplicate_rows, recovered.damaged) == (size, 0, ())
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten"])
def test_a_damaged_shard_is_removed_and_its_rows_count_as_missing(folder, damage):
    write_shard(folder, make_rows(0, 1, 2))
    write_shard(folder, make_rows(5, 6))
    shard = max(folder.glob("*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(
        {"truncated": content[:-20], "emptied": b"", "overwritten": b"x" * len(content)}[damage]
    )
    recovered = recover_shards(folder)
    assert recovered.ids.tolist() == [0, 1, 2]
    assert recovered.damaged == (shard.name,)
    assert not shard.exists()


def test_a_shard_with_duplicate_rows_is_removed(folder):
    for ids in ((0, 1, 2), (2, 3), (4, 5)):  # the middle one shares a row with the first
        write_shard(folder, make_rows(*ids))
    recovered = recover_shards(folder)
    assert recovered.ids.tolist() == [0, 1, 2, 4, 5]
    assert recovered.duplicate_rows == 1
    mark_folder_finished(folder, {})
    assert Store(folder).image_ids.tolist() == [0, 1, 2, 4, 5]


def test_image_ids_of_a_shard_equal_those_of_the_store(folder):
    write_shard(folder, make_rows(9, 4, 6))
    assert read_image_ids(next(folder.glob("*.arrow"))).tolist() == [9, 4, 6]


def test_only_the_ids_of_a_remote_shard_are_read(s3, monkeypatch):
    folder = to_path(f"{s3}/features")
    size = write_shard(folder, make_rows(*range(100)) | {"tap": np.zeros((100, 10_000), np.float32)})
    read: list[int] = []
    fetch = s3fs.S3File._fetch_range

    def fetch_and_count(self, start, end):
        read.append(end - start)
        return fetch(self, start, end)

    monkeypatch.setattr(s3fs.S3File, "_fetch_range", fetch_and_count)
    assert recover_shards(folder).ids.tolist() == list(range(100))
    assert size > 4_000_000
    assert sum(read) < 100_000


def test_shards_written_after_the_folder_was_finished_are_ignored(tmp_path):
    write_shard(tmp_path, make_rows(0, 1))
    recovered = recover_shards(tmp_path)
    mark_folder_finished(tmp_path, {SHARDS_KEY: recovered.shards})
    write_shard(tmp_path, make_rows(1, 2))  # by a worker that was wrongly taken for dead
    assert Store(tmp_path).image_ids.tolist() == [0, 1]


def test_a_disk_error_removes_no_shard(tmp_path, monkeypatch):
    write_shard(tmp_path, make_rows(0, 1))

    def raise_disk_error(shard: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(shard))

    monkeypatch.setattr(shard_recovery, "read_image_ids", raise_disk_error)
    with pytest.raises(OSError, match="Input/output"):
        recover_shards(tmp_path)
    monkeypatch.undo()
    assert recover_shards(tmp_path).ids.tolist() == [0, 1]
