"""Test the store against plain arrays: whole rows, positions, several folders, and errors."""

import json

import numpy as np
import pyarrow as pa
import pytest

from ka_ray.features import store as store_module
from ka_ray.features.store import DONE, Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.storage.files import write_json
from ka_ray.storage.uris import to_path


def make_columns(ids: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    count = len(ids)
    return {
        "image_id": np.asarray(ids, np.int64),
        "image": rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8),
        "tap": rng.normal(size=(count, 5, 2, 3)).astype(np.float16),
        "vector": rng.normal(size=(count, 6)).astype(np.float32),
        "label": np.array([f"name {i}" for i in ids], dtype=object),
    }


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    """Return rows whose image ids are not sorted and have gaps."""
    return make_columns(np.random.default_rng(1).permutation(40)[:23])


@pytest.fixture
def by_id(columns):
    """The same rows, sorted by image id."""
    order = np.argsort(columns["image_id"])
    return {name: column[order] for name, column in columns.items()}


@pytest.mark.parametrize("shards", [1, 4, 23])
def test_rows_are_in_the_order_of_their_ids(make_store, columns, by_id, shards):
    store = make_store(columns, shards)
    gathered = store.gather(list(columns), np.arange(len(store)))
    assert len(store) == 23
    np.testing.assert_array_equal(store.image_ids, by_id["image_id"])
    for name, column in by_id.items():
        np.testing.assert_array_equal(gathered[name], column)
        assert gathered[name].dtype == column.dtype


@pytest.mark.parametrize("shards", [1, 4])
def test_gather_equals_plain_indexing(make_store, columns, by_id, shards):
    store = make_store(columns, shards)
    rows = np.random.default_rng(2).integers(0, 23, 50)
    gathered = store.gather(["tap", "label", "image"], rows)
    assert set(gathered) == {"tap", "label", "image"}
    for name, column in gathered.items():
        np.testing.assert_array_equal(column, by_id[name][rows])


@pytest.mark.parametrize("shards", [1, 4])
def test_gather_at_positions_equals_a_plain_loop(make_store, columns, by_id, shards):
    store = make_store(columns, shards)
    rng = np.random.default_rng(3)
    rows, draws = rng.integers(0, 23, 11), rng.random((11, 4), dtype=np.float32)
    draws[0] = [0, 1 - 2**-24, 1 / 6, 0.5]
    expected = []
    for row, numbers in zip(rows, draws, strict=True):
        for number in numbers:
            y, x = divmod(int(number * 6), 3)
            expected.append(by_id["tap"][row, :, y, x])
    gathered = store.gather(["tap"], rows, draws)["tap"]
    assert gathered.shape == (44, 5)
    np.testing.assert_array_equal(gathered, np.stack(expected))


def test_a_vector_has_a_single_position(make_store, columns, by_id):
    store = make_store(columns)
    rows = np.array([5, 2, 9])
    gathered = store.gather(["vector"], rows, np.random.default_rng(0).random((3, 4), dtype=np.float32))
    np.testing.assert_array_equal(gathered["vector"], by_id["vector"][rows])


def test_every_position_is_drawn_equally_often(make_store):
    ids = np.arange(4)
    maps = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3).repeat(4, axis=0)
    store = make_store({"image_id": ids, "tap": maps}, shards=2)
    draws = np.random.default_rng(0).random((4, 3000), dtype=np.float32)
    counts = np.bincount(store.gather(["tap"], ids, draws)["tap"][:, 0].astype(int), minlength=6)
    assert np.abs(counts / 12_000 - 1 / 6).max() < 5 * np.sqrt(1 / 6 * 5 / 6 / 12_000)


def test_gathered_rows_are_copies(make_store, columns, by_id):
    store = make_store(columns)
    gathered = store.gather(["vector"], np.arange(23))["vector"]
    gathered[:] = 0
    np.testing.assert_array_equal(store.gather(["vector"], np.arange(23))["vector"], by_id["vector"])


def test_row_shapes_and_column_names_equal_those_written(make_store, columns):
    store = make_store(columns)
    assert store.row_shape("tap") == (5, 2, 3)
    assert store.row_shape("image_id") == ()
    assert set(store.column_names) == set(columns)


def test_opening_a_store_allocates_little_memory(make_store):
    big = {"image_id": np.arange(64), "tap": np.zeros((64, 4096), np.float32)}
    make_store(big, shards=2)
    before = pa.total_allocated_bytes()
    store = make_store(big, shards=2)
    assert len(store) == 64
    assert pa.total_allocated_bytes() - before < 64 * 4096 * 4 / 10


def test_two_folders_are_read_as_one_store_with_their_common_columns(make_store, tmp_path, columns, by_id):
    make_store({name: column[:10] for name, column in columns.items()}, folder="features")
    make_store({n: column[10:] for n, column in columns.items() if n != "tap"}, folder="images")
    merged = Store(tmp_path / "features", tmp_path / "images")
    assert [summary["rows"] for summary in merged.summaries] == [10, 13]
    assert set(merged.column_names) == set(columns) - {"tap"}
    gathered = merged.gather(["image", "label"], np.arange(23))
    np.testing.assert_array_equal(merged.image_ids, by_id["image_id"])
    np.testing.assert_array_equal(gathered["image"], by_id["image"])
    np.testing.assert_array_equal(gathered["label"], by_id["label"])


def test_writing_a_shard_twice_changes_nothing(tmp_path, columns):
    create_shard_folder(tmp_path / "store")
    sizes = [write_shard(tmp_path / "store", columns) for _ in range(2)]
    files = list((tmp_path / "store").iterdir())
    mark_folder_finished(tmp_path / "store", {})
    assert len(files) == 1
    assert sizes == [files[0].stat().st_size] * 2
    assert len(Store(tmp_path / "store")) == 23


def test_a_shard_whose_writing_failed_is_removed(tmp_path, columns, monkeypatch):
    folder = tmp_path / "store"
    create_shard_folder(folder)

    class FailingWriter(pa.ipc.RecordBatchFileWriter):
        def write_table(self, table, max_chunksize=None):
            super().write_table(table.slice(0, 3), max_chunksize)
            raise OSError("disk full")

    monkeypatch.setattr(store_module.pa.ipc, "new_file", FailingWriter)
    with pytest.raises(OSError, match="disk full"):
        write_shard(folder, columns)
    monkeypatch.undo()
    assert list(folder.glob("*.arrow")) == []
    write_shard(folder, columns)
    mark_folder_finished(folder, {})
    assert len(Store(folder)) == 23


def test_shards_on_s3_are_fetched_only_once(s3, s3_requests, columns, by_id):
    folder = to_path(f"{s3}/run/features")
    create_shard_folder(folder)
    write_shard(folder, columns)
    create_shard_folder(folder)  # removes the shard of an earlier attempt
    parts = np.array_split(np.arange(23), 4)
    sizes = [write_shard(folder, {name: column[rows] for name, column in columns.items()}) for rows in parts]
    with pytest.raises(FileNotFoundError):
        Store(folder)
    mark_folder_finished(folder, {"rows": 23})
    assert sorted(sizes) == sorted(path.stat().st_size for path in folder.glob("*.arrow"))
    for _ in range(2):
        store = Store(folder)
        gathered = store.gather(list(columns), np.arange(23))
        assert store.summaries[0]["rows"] == 23
        for name, column in by_id.items():
            np.testing.assert_array_equal(gathered[name], column)
    assert len(s3_requests("GET", ".arrow")) == 4


def test_a_duplicate_image_id_is_refused(tmp_path, columns):
    folder = tmp_path / "store"
    create_shard_folder(folder)
    write_shard(folder, columns)
    write_shard(folder, {name: column[:2] for name, column in columns.items()})
    mark_folder_finished(folder, {})
    with pytest.raises(ValueError, match="2 image ids twice"):
        Store(folder)


def test_an_image_id_in_two_folders_is_refused(make_store, tmp_path, columns):
    make_store(columns, folder="features")
    make_store({name: column[:1] for name, column in columns.items()}, shards=1, folder="images")
    with pytest.raises(ValueError, match="1 image ids twice"):
        Store(tmp_path / "features", tmp_path / "images")


def test_an_unfinished_folder_is_refused(tmp_path, columns):
    create_shard_folder(tmp_path / "store")
    write_shard(tmp_path / "store", columns)
    with pytest.raises(FileNotFoundError, match=DONE):
        Store(tmp_path / "store")


def test_a_folder_without_rows_is_refused(tmp_path):
    create_shard_folder(tmp_path / "store")
    mark_folder_finished(tmp_path / "store", {})
    with pytest.raises(ValueError, match=r"no images in .*store"):
        Store(tmp_path / "store")


def test_creating_a_folder_removes_its_old_content(tmp_path, columns):
    folder = tmp_path / "deep" / "store"
    create_shard_folder(folder)
    write_shard(folder, columns)
    mark_folder_finished(folder, {})
    create_shard_folder(folder)
    assert list(folder.iterdir()) == []


def test_json_is_written_atomically(tmp_path):
    path = tmp_path / "done.json"
    write_json(path, {"rows": 1})
    with pytest.raises(TypeError):
        write_json(path, {"rows": object()})
    assert json.loads(path.read_text()) == {"rows": 1}
    write_json(path, {"rows": 2})
    assert json.loads(path.read_text()) == {"rows": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["done.json"]
