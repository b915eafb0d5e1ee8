"""Every image source: ids, pixels, labels, selections, and reports of unreadable images."""

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image
from sklearn.datasets import load_digits

from ka_ray.config import Decoding, DigitsImages, FolderImages, ParquetImages, Preprocessing
from ka_ray.errors import InputError
from ka_ray.images import open_source, read_chunk, sample_ids, sources
from ka_ray.images.decode import decode_image
from ka_ray.images.views import make_view
from ka_ray.storage.uris import to_path

SIZE = 6


def random_pixels(count: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def make_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fail_on_unreadable(image_id: int, name: str) -> None:
    raise AssertionError(f"image {image_id} is unreadable: {name}")


def read(
    config: Any, ids: np.ndarray | None = None, only=None, on_unreadable=fail_on_unreadable
) -> dict[str, np.ndarray]:
    """Read a whole source, one chunk after another, into one set of columns."""
    source = open_source(config)
    ids = np.arange(source.num_images) if ids is None else ids
    batches = [
        batch
        for chunk in source.chunks
        for batch in read_chunk(config, source.read, chunk, ids, only, on_unreadable)
    ]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture
def folder(tmp_path):
    """Five PNG files in two class folders, written in another order than that of their paths."""
    pixels = random_pixels(5)
    names = ["dog/b.png", "cat/z.png", "cat/a.PNG", "dog/deep/a.png", "cat/m.png"]
    for name, image in zip(names, pixels, strict=True):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_png(image))
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("no image")
    order = np.argsort(names)
    return FolderImages(source="folder", path=tmp_path / "photos", size=SIZE), pixels[order]


def write_parquet(path, contents: list[Any], labels: list[Any] | None = None) -> None:
    columns = {"image": contents} if labels is None else {"image": contents, "label": labels}
    pq.write_table(pa.table(columns), path, row_group_size=2)


@pytest.fixture(params=["bytes", "struct"])
def parquet(tmp_path, request):
    """Two Parquet files of three images each, two to a row group."""
    pixels = random_pixels(6)
    contents: list[Any] = [make_png(image) for image in pixels]
    if request.param == "struct":
        contents = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)]
    write_parquet(tmp_path / "part-0.parquet", contents[:3], ["cat", "dog", "cat"])
    write_parquet(tmp_path / "part-1.parquet", contents[3:], ["dog", None, "cat"])
    config = ParquetImages(source="parquet", path=tmp_path, size=SIZE, label_column="label")
    return config, pixels


def copy_to_s3(config: Any, s3: str) -> Any:
    """Copy a source's files to S3, and return the config of the copy."""
    local = config.path.parent if config.path.is_file() else config.path
    remote = to_path(f"{s3}/images")
    remote.fs.put(str(local), remote.path, recursive=True)
    path = remote / config.path.name if config.path.is_file() else remote
    return type(config).model_validate(config.model_dump() | {"path": str(path)})


@pytest.fixture(params=["folder", "parquet", "digits", "folder on s3", "parquet on s3"])
def any_source(request):
    if request.param.endswith("on s3"):
        s3 = request.getfixturevalue("s3")
        if request.param.startswith("folder"):
            return copy_to_s3(request.getfixturevalue("folder")[0], s3)
        return copy_to_s3(make_parquet_source(request.getfixturevalue("tmp_path")), s3)
    if request.param == "parquet":
        return make_parquet_source(request.getfixturevalue("tmp_path"))
    if request.param == "folder":
        return request.getfixturevalue("folder")[0]
    return DigitsImages(source="digits")


def make_parquet_source(tmp_path) -> ParquetImages:
    write_parquet(tmp_path / "images.parquet", [make_png(image) for image in random_pixels(5)], list("abcab"))
    return ParquetImages(source="parquet", path=tmp_path / "images.parquet", size=SIZE, label_column="label")


def test_reading_a_row_group_on_s3_fetches_no_other(s3, tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    contents = [noise.bytes(100_000) for _ in range(16)]
    write_parquet(tmp_path / "noise.parquet", contents, list("ab" * 8))
    config = ParquetImages(source="parquet", path=tmp_path / "noise.parquet", size=SIZE, label_column="label")
    source = open_source(copy_to_s3(config, s3))
    assert [chunk.num_images for chunk in source.chunks] == [2] * 8
    fetched: list[int] = []
    fetch = s3fs.S3File._fetch_range

    def fetch_and_count(self: Any, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return fetch(self, start, end)

    monkeypatch.setattr(s3fs.S3File, "_fetch_range", fetch_and_count)
    images = list(source.read(source.chunks[5], {10, 11}.__contains__))
    assert [image.content for image in images] == contents[10:12]
    assert [image.label for image in images] == ["a", "b"]
    assert sum(fetched) < 300_000  # two images of 100 kB and the footer, of a file of 1.6 MB
    assert len(fetched) <= 6


class TestEverySource:
    """Requirements for every source."""

    def test_ids_count_from_zero_and_are_the_same_in_every_run(self, any_source):
        first, again = read(any_source), read(any_source)
        assert first["image_id"].tolist() == list(range(open_source(any_source).num_images))
        for name, column in first.items():
            np.testing.assert_array_equal(column, again[name])

    def test_columns_have_the_documented_types(self, any_source):
        columns = read(any_source)
        count = len(columns["image_id"])
        assert columns["image_id"].dtype == np.int64
        assert columns["image"].dtype == np.uint8
        assert columns["image"].shape == (count, 3, any_source.size, any_source.size)
        assert all(isinstance(label, str) and label for label in columns["label"])

    def test_wanted_ids_select_rows_of_the_whole(self, any_source):
        whole = read(any_source)
        ids = np.array([1, 2, 4])
        selected = read(any_source, ids)
        for name, column in whole.items():
            np.testing.assert_array_equal(selected[name], column[ids])

    def test_only_classes_selects_by_label(self, any_source):
        whole = read(any_source)
        label = whole["label"][0]
        selected = read(any_source, only=frozenset([label]))
        np.testing.assert_array_equal(selected["image_id"], np.flatnonzero(whole["label"] == label))

    def test_small_batches_have_the_same_rows(self, any_source, monkeypatch):
        whole = read(any_source)
        monkeypatch.setattr(sources, "BATCH_BYTES", 2 * 3 * any_source.size**2)
        source = open_source(any_source)
        chunk = source.chunks[0]
        ids = np.arange(chunk.num_images)
        batches = list(read_chunk(any_source, source.read, chunk, ids, None, fail_on_unreadable))
        assert max(len(batch["image_id"]) for batch in batches) == min(2, chunk.num_images)
        np.testing.assert_array_equal(
            np.concatenate([batch["image"] for batch in batches]), whole["image"][: chunk.num_images]
        )

    def test_chunks_and_reader_can_be_pickled(self, any_source):
        source = open_source(any_source)
        chunk, reader = pickle.loads(pickle.dumps((source.chunks[-1], source.read)))
        ids = [encoded.image_id for encoded in reader(chunk, lambda image_id: True)]
        assert ids == list(range(chunk.first_id, chunk.first_id + chunk.num_images))


def test_a_folder_is_read_in_path_order(folder):
    config, pixels = folder
    columns = read(config)
    np.testing.assert_array_equal(columns["image"], pixels.transpose(0, 3, 1, 2))
    assert columns["label"].tolist() == ["cat", "cat", "cat", "dog", "dog"]
    assert open_source(config).class_names == ("cat", "dog")


def test_an_unlabelled_folder_has_no_labels(folder):
    config = folder[0].model_copy(update={"labelled": False})
    assert set(read(config)["label"]) == {""}
    assert open_source(config).class_names is None


def test_a_file_outside_of_class_folders_is_refused(folder):
    config = folder[0]
    (config.path / "stray.png").write_bytes(make_png(random_pixels(1)[0]))
    with pytest.raises(InputError, match=r"stray\.png is not in a class folder.*labelled=false"):
        open_source(config)
    assert open_source(config.model_copy(update={"labelled": False})).num_images == 6


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no image files.*\.jpg"):
        open_source(FolderImages(source="folder", path=tmp_path, size=SIZE))


@pytest.mark.parametrize("content", [b"", b"no image", make_png(random_pixels(1)[0])[:-40]])
def test_an_unreadable_file_is_reported_by_name_and_skipped(folder, content):
    config = folder[0]
    unreadable_path = config.path / "cat" / "m.png"
    unreadable_path.write_bytes(content)
    reported: list[tuple[int, str]] = []
    columns = read(config, on_unreadable=lambda image_id, name: reported.append((image_id, name)))
    assert columns["image_id"].tolist() == [0, 2, 3, 4]
    assert [image_id for image_id, _ in reported] == [1]
    assert str(unreadable_path) in reported[0][1]


def test_a_file_deleted_after_listing_is_unreadable(folder):
    config = folder[0]
    source = open_source(config)
    (config.path / "cat" / "a.PNG").unlink()
    reported: list[int] = []
    for chunk in source.chunks:
        batches: Iterator[Any] = read_chunk(
            config, source.read, chunk, np.arange(5), None, lambda image_id, name: reported.append(image_id)
        )
        assert [batch["image_id"].tolist() for batch in batches] == [[1, 2, 3, 4]]
    assert reported == [0]


def test_an_error_of_the_caller_for_an_unreadable_image_ends_the_reading(folder):
    config = folder[0]
    (config.path / "cat" / "m.png").write_bytes(b"")
    with pytest.raises(AssertionError, match=r"m\.png"):
        read(config)


def test_parquet_files_are_read_in_the_order_of_their_rows(parquet):
    config, pixels = parquet
    columns = read(config)
    np.testing.assert_array_equal(columns["image"], pixels.transpose(0, 3, 1, 2))
    assert columns["label"].tolist() == ["cat", "dog", "cat", "dog", "", "cat"]
    assert [chunk.num_images for chunk in open_source(config).chunks] == [2, 1, 2, 1]


def test_parquet_without_a_label_column_is_unlabelled(parquet):
    config = parquet[0].model_copy(update={"label_column": None})
    assert set(read(config)["label"]) == {""}


def test_parquet_reads_only_files_that_match_the_pattern(parquet):
    config, pixels = parquet
    config = config.model_copy(update={"files": "*-1.parquet"})
    np.testing.assert_array_equal(read(config)["image"], pixels[3:].transpose(0, 3, 1, 2))


def test_integer_labels_are_indices_of_the_class_names(tmp_path):
    path = tmp_path / "images.parquet"
    write_parquet(path, [make_png(image) for image in random_pixels(3)], [2, 0, 1])
    config = ParquetImages(
        source="parquet", path=path, size=SIZE, label_column="label", classes=("red", "green", "blue")
    )
    assert read(config)["label"].tolist() == ["blue", "red", "green"]
    assert open_source(config).class_names == ("red", "green", "blue")


@pytest.mark.parametrize("label", [2, -1])
def test_an_integer_label_beyond_the_classes_is_refused(tmp_path, label):
    path = tmp_path / "images.parquet"
    write_parquet(path, [make_png(image) for image in random_pixels(2)], [0, label])
    config = ParquetImages(source="parquet", path=path, size=SIZE, label_column="label", classes=("a", "b"))
    with pytest.raises(InputError, match=rf"images\.classes: label {label} found, but only 2"):
        read(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_column": "picture"}, r"images\.image_column: .* no column 'picture'; it has .*'image'"),
        ({"label_column": "kind"}, r"images\.label_column: .* no column 'kind'"),
        ({"files": "*.pq"}, r"images\.files = '\*\.pq'"),
        (
            {"label_column": "number"},
            r"images\.classes: column 'number' of .*\.parquet holds int64, not text; set images\.classes",
        ),
    ],
)
def test_a_wrong_parquet_config_is_refused(tmp_path, changes, message):
    table = pa.table({"image": [b"x"], "label": ["a"], "number": [1]})
    pq.write_table(table, tmp_path / "images.parquet")
    keys = {"source": "parquet", "path": tmp_path, "size": SIZE, **changes}
    with pytest.raises(InputError, match=message):
        open_source(ParquetImages.model_validate(keys))


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "images.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"images\.parquet is not a Parquet file"):
        open_source(ParquetImages(source="parquet", path=tmp_path, size=SIZE))


def test_an_unreadable_row_is_reported_by_file_and_row(tmp_path):
    path = tmp_path / "images.parquet"
    good = [make_png(image) for image in random_pixels(2)]
    write_parquet(path, [good[0], good[1], b"broken", None])
    reported: list[tuple[int, str]] = []
    config = ParquetImages(source="parquet", path=path, size=SIZE)
    columns = read(config, on_unreadable=lambda image_id, name: reported.append((image_id, name)))
    assert columns["image_id"].tolist() == [0, 1]
    assert [image_id for image_id, _ in reported] == [2, 3]
    assert all(str(path) in name and "row group 1" in name for _, name in reported)


def test_the_digits_equal_those_of_scikit_learn():
    digits = load_digits()
    columns = read(DigitsImages(source="digits", split="all"))
    expected = np.round(digits.images * 255 / 16)
    for channel in range(3):
        np.testing.assert_array_equal(columns["image"][:, channel], expected)
    assert columns["label"].tolist() == [f"digit_{target}" for target in digits.target]


def test_the_test_split_is_every_fifth_digit_and_the_training_split_the_others():
    splits = {split: read(DigitsImages(source="digits", split=split)) for split in ("train", "test", "all")}
    labels = splits["all"]["label"]
    every_fifth = np.arange(len(labels)) % 5 == 4
    assert splits["test"]["label"].tolist() == labels[every_fifth].tolist()
    assert splits["train"]["label"].tolist() == labels[~every_fifth].tolist()
    np.testing.assert_array_equal(splits["train"]["image"], splits["all"]["image"][~every_fifth])


def make_square(content: bytes | np.ndarray, size: int, resize: str) -> np.ndarray:
    """Decode and resize as a network does whose preprocessing leaves both to the images' config."""
    config = FolderImages(source="folder", path="/", size=size, resize=resize)
    return make_view(Preprocessing(), config).apply(decode_image(content, Decoding()))


def test_crop_keeps_the_centre_of_an_image():
    pixels = random_pixels(1, height=4, width=8)[0]
    np.testing.assert_array_equal(make_square(pixels, 4, "crop"), pixels[:, 2:6].transpose(2, 0, 1))
    tall = pixels.transpose(1, 0, 2).copy()
    np.testing.assert_array_equal(make_square(tall, 4, "crop"), tall[2:6].transpose(2, 0, 1))


def test_squash_keeps_the_left_and_right_side_of_a_wide_image_and_crop_does_not():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 16:] = 255
    squashed, cropped = make_square(pixels, 8, "squash"), make_square(pixels, 8, "crop")
    assert squashed[:, :, 0].max() == 0
    assert squashed[:, :, -1].min() == 255
    assert squashed.mean() / 255 == pytest.approx(1 / 3, abs=0.01)
    assert cropped.max() == 0


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize(("height", "width"), [(5, 9), (9, 5), (3, 3), (100, 7)])
def test_any_image_becomes_square(height, width, resize):
    pixels = np.full((height, width, 3), 77, np.uint8)
    np.testing.assert_array_equal(make_square(pixels, 4, resize), np.full((3, 4, 4), 77))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(mode):
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (255, 255, 255)).convert(mode).save(file, "TIFF")
    np.testing.assert_array_equal(make_square(file.getvalue(), SIZE, "squash"), np.full((3, SIZE, SIZE), 255))


@pytest.mark.parametrize("limit", [1, 10, 99])
def test_sampled_ids_are_sorted_distinct_and_in_range(limit):
    ids = sample_ids(100, limit, seed=0)
    assert len(set(ids.tolist())) == limit
    assert (np.diff(ids) > 0).all()
    assert ids.min() >= 0
    assert ids.max() < 100


@pytest.mark.parametrize("limit", [None, 100, 1000])
def test_no_limit_selects_all_ids(limit):
    assert sample_ids(100, limit, seed=0).tolist() == list(range(100))


def test_sampled_ids_depend_only_on_the_seed():
    assert sample_ids(100, 10, 1).tolist() == sample_ids(100, 10, 1).tolist()
    assert sample_ids(100, 10, 1).tolist() != sample_ids(100, 10, 2).tolist()


def test_a_larger_limit_includes_the_ids_of_a_smaller_one():
    assert set(sample_ids(100, 10, 3)) < set(sample_ids(100, 20, 3))


def test_every_id_is_sampled_equally_often():
    counts = np.bincount(np.concatenate([sample_ids(20, 5, seed) for seed in range(2000)]), minlength=20)
    assert np.abs(counts / 2000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)


def save_as(path: Path, form: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, form)


def listed_names(source) -> list[str]:
    return [Path(path).name for chunk in source.chunks for path, _ in chunk.payload]


def test_images_are_found_by_suffix_or_content_and_other_files_are_named(tmp_path):
    forms = {"a.jfif": "JPEG", "b.avif": "AVIF", "c": "PNG", "d.photo": "WEBP", "e.JPG": "JPEG", "f.x": "GIF"}
    forms |= {"g": "BMP", "h": "TIFF", "i": "PPM", "j": "JPEG2000", "k": "AVIF"}
    for name, form in forms.items():
        save_as(tmp_path / "cat" / name, form)
    for name in ("notes.txt", "more.txt", "labels.json", "README"):
        (tmp_path / "cat" / name).write_text("P is for text, BUT no image")
    for name in (".hidden.png", "Thumbs.db", ".cache/x.png", "__MACOSX/x.png"):
        save_as(tmp_path / "cat" / name)
    source = open_source(FolderImages(source="folder", path=tmp_path, size=8))
    assert listed_names(source) == sorted(forms)
    assert source.note == (
        f"{tmp_path}: left out files that are no images: 1 .json, 2 .txt, 1 without suffix; left out hidden "
        "files and folders: 1 .*, 1 .cache, 1 Thumbs.db, 1 __MACOSX"
    )
    labels = [row for columns in read_all(source) for row in columns["label"].tolist()]
    assert labels == ["cat"] * len(forms)


def read_all(source) -> list[dict[str, np.ndarray]]:
    """Read all chunks of a source of 8 x 8 images; fail if one is unreadable."""
    config = FolderImages(source="folder", path="/", size=8)
    return [
        columns
        for chunk in source.chunks
        for columns in read_chunk(config, source.read, chunk, np.arange(source.num_images), None, pytest.fail)
    ]


def test_a_folder_of_images_only_has_no_note(tmp_path):
    save_as(tmp_path / "cat" / "a.png")
    assert open_source(FolderImages(source="folder", path=tmp_path, size=8)).note == ""


def test_names_in_another_encoding_are_listed_and_read(tmp_path):
    save_as(tmp_path / "cat" / os.fsdecode(b"caf\xe9.png"))  # Latin-1
    source = open_source(FolderImages(source="folder", path=tmp_path, size=8))
    assert source.num_images == len(read_all(source)[0]["image_id"]) == 1
    assert len(source.digest) == 64


def test_the_message_about_a_folder_without_images_names_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(InputError, match=r"no image files; accepted: .*\.jfif.* left out .*: 1 \.txt"):
        open_source(FolderImages(source="folder", path=tmp_path, size=8))


def test_undecodable_names_of_classes_and_files_are_printable_everywhere(tmp_path):
    name, label = os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"ch\xe2t")
    save_as(tmp_path / label / name)
    (tmp_path / label / os.fsdecode(b"x\xe9.png")).write_bytes(b"no image")
    config = FolderImages(source="folder", path=tmp_path, size=8)
    source = open_source(config)
    reported: list[str] = []
    columns = read(config, on_unreadable=lambda image_id, text: reported.append(text))
    assert source.class_names == (r"ch\xe2t",) == tuple(pa.array(columns["label"]).to_pylist())
    assert reported == [rf"{tmp_path}/ch\xe2t/x\xe9.png (not an image file)"]
    assert pickle.loads(pickle.dumps(source.chunks)) == source.chunks
    save_as(tmp_path / name)
    with pytest.raises(InputError, match=r"caf\\xe9\.png is not in a class folder"):
        open_source(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(InputError, match=r"closed cannot be listed: Permission denied"):
        open_source(FolderImages(source="folder", path=tmp_path, size=8))


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    save_as(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png cannot be listed: Not a directory"):
        open_source(FolderImages(source="folder", path=tmp_path / "a.png", size=8))


def test_cells_without_bytes_are_read_from_their_paths(tmp_path, s3):
    contents = [make_png(image) for image in random_pixels(4)]
    (tmp_path / "set" / "images").mkdir(parents=True)
    for i in (1, 2):
        (tmp_path / "set" / "images" / f"{i}.png").write_bytes(contents[i])
    cells = [
        {"bytes": contents[0], "path": "images/0.png"},
        {"bytes": None, "path": "images/1.png"},
        {"bytes": None, "path": str(tmp_path / "set" / "images" / "2.png")},
        {"bytes": contents[3], "path": None},
        {"bytes": None, "path": "images/gone.png"},
        {"bytes": None, "path": None},
    ]
    write_parquet(tmp_path / "set" / "images.parquet", cells)
    config = ParquetImages(source="parquet", path=tmp_path / "set" / "images.parquet", size=SIZE)
    for kind in (config, copy_to_s3(config, s3)):
        reported: list[int] = []
        columns = read(kind, on_unreadable=lambda image_id, name, ids=reported: ids.append(image_id))
        assert reported == [4, 5]
        np.testing.assert_array_equal(columns["image"], random_pixels(4).transpose(0, 3, 1, 2))
