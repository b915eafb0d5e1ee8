"""WebDataset's tar shards."""

import gzip
import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from ray.data._internal.datasource.webdataset_datasink import WebDatasetDatasink
from ray.data.block import BlockAccessor
from source_makers import CLASSES, LABELS, load, make_shards, read, to_json, write_tar

from ka_ray.errors import InputError
from ka_ray.images import open_source
from ka_ray.storage.uris import to_path


def shard(path, members, **keys):
    return load({"source": "webdataset", "path": str(write_tar(path, members)), **keys})


def test_samples_are_runs_of_members_with_one_key(pictures, tmp_path):
    a, b, c = pictures.contents[:3]
    members = [
        ("./", b""),
        ("sub/1.PNG", a),
        ("sub/1.cls", b"dog\n"),
        ("sub/._1.png", b"of macOS"),
        ("sub/@eaDir/1.png", a),
        ("./.ipynb_checkpoints/1.png", a),
        ("other/1.jpg", b),
        ("2.txt", b"cat"),
        ("2.x.png", c),
        ("alone.json", b"{}"),
        ("README", b"no extension"),
    ]
    config = shard(tmp_path / "a.tar", members, label_key="cls")
    source = open_source(config)
    assert [sample[0] for sample in source.chunks[0].payload[1]] == ["sub/1", "other/1", "2"]
    assert source.note == (
        f"{tmp_path}/a.tar: left out 1 samples without an image; {tmp_path}/a.tar: left out hidden files and "
        "folders: 1 ._*, 1 .ipynb_checkpoints, 1 @eaDir"
    )
    columns = read(config)
    assert columns["label"].tolist() == ["dog", "", ""]
    np.testing.assert_array_equal(columns["image"], pictures.pixels()[:3])


def test_an_image_is_chosen_by_its_extension(pictures, tmp_path):
    a, b, c = pictures.contents[:3]
    members = [("1.png", a), ("1.seg.png", b), ("2.jpg", c)]
    config = shard(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"sample 1 of .* has several images, png, seg\.png; set image_key"):
        open_source(config)
    chosen = read(shard(tmp_path / "a.tar", members, image_key="png;jpg"))
    np.testing.assert_array_equal(chosen["image"], pictures.pixels()[[0, 2]])
    chosen = read(shard(tmp_path / "a.tar", members, image_key="seg.png"))
    np.testing.assert_array_equal(chosen["image"], pictures.pixels()[[1]])
    with pytest.raises(
        InputError, match=r"no sample .* has an image webp; its members end in jpg, png, seg\.png"
    ):
        open_source(shard(tmp_path / "a.tar", members, image_key="webp"))


def test_labels_that_no_sample_has_are_refused(pictures, tmp_path):
    with pytest.raises(InputError, match=r"images.label_key: no sample of .*a.tar has a member 'cls'"):
        open_source(shard(tmp_path / "a.tar", [("1.png", pictures.contents[0])], label_key="cls"))


@pytest.mark.parametrize(
    ("members", "keys", "expected"),
    [
        ([("1.cls", b" 2\n")], {"label_key": "cls", "classes": list(CLASSES)}, "fish"),
        ([("1.txt", "café".encode())], {"label_key": "txt"}, "café"),
        ([("1.json", to_json({"class": "cat"}))], {"label_key": "json.class"}, "cat"),
        ([("1.json", to_json({"a": {"b": 1}}))], {"label_key": "json.a.b", "classes": list(CLASSES)}, "dog"),
        ([("1.json", to_json({"class": None}))], {"label_key": "json.class"}, ""),
        ([("1.json", to_json({}))], {"label_key": "json.class"}, ""),
        ([("1.cls", b"2")], {}, ""),
    ],
)
def test_labels(pictures, tmp_path, members, keys, expected):
    config = shard(tmp_path / "a.tar", [*members, ("1.png", pictures.contents[0])], **keys)
    assert read(config)["label"].tolist() == [expected]


@pytest.mark.parametrize(
    ("member", "keys", "message"),
    [
        (
            ("1.cls", b"3"),
            {"label_key": "cls", "classes": list(CLASSES)},
            "label 3 found, but only 3 classes",
        ),
        (("1.cls", b"3"), {"label_key": "cls"}, r"images\.classes: label 3 found, but only 0"),
        (("1.cls", b"x"), {"label_key": "cls", "classes": list(CLASSES)}, "'x' is no integer"),
        (("1.cls", b"\xff"), {"label_key": "cls"}, "decode byte 0xff"),
        (("1.json", b"{"), {"label_key": "json.class"}, "Expecting property name"),
        (("1.json", b'{"class": [1]}'), {"label_key": "json.class"}, r"label \[1\] is a list"),
    ],
)
def test_wrong_labels_are_refused_by_sample(pictures, tmp_path, member, keys, message):
    config = shard(tmp_path / "a.tar", [member, ("1.png", pictures.contents[0])], **keys)
    with pytest.raises(InputError, match=rf"images\.label_key: label of .*a\.tar, sample 1: .*{message}"):
        read(config)


def test_long_names_and_other_tar_formats_are_read(pictures, tmp_path):
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            for i in range(3):
                member = tarfile.TarInfo(f"{'long/' * 22}{i}.png")
                member.size = len(pictures.contents[i])
                tar.addfile(member, io.BytesIO(pictures.contents[i]))
        columns = read(load({"source": "webdataset", "path": str(tmp_path / "a.tar")}))
        np.testing.assert_array_equal(columns["image"], pictures.pixels()[:3])


def test_a_shard_that_ray_data_has_written_is_read(pictures, tmp_path):
    rows = {"__key__": ["0", "1"], "png": pictures.contents[:2], "cls": [b"2", b"0"]}
    sink = WebDatasetDatasink(str(tmp_path), encoder=lambda sample: sample)
    with (tmp_path / "a.tar").open("wb") as file:
        sink.write_block_to_file(BlockAccessor.for_block(pa.table(rows)), file)
    tree = {"source": "webdataset", "path": str(tmp_path), "label_key": "cls", "classes": list(CLASSES)}
    columns = read(load(tree))
    assert columns["label"].tolist() == ["fish", "cat"]
    np.testing.assert_array_equal(columns["image"], pictures.pixels()[:2])


def test_shards_on_s3(pictures, s3):
    tree = make_shards(pictures)
    remote = to_path(f"{s3}/shards")
    remote.fs.put(tree["path"], remote.path, recursive=True)
    columns = read(load(tree, path=f"{s3}/shards"))
    assert columns["label"].tolist() == LABELS
    np.testing.assert_array_equal(columns["image"], pictures.pixels())


def test_a_damaged_image_is_reported_by_shard_and_sample(pictures, tmp_path):
    config = shard(tmp_path / "a.tar", [("1.png", b"broken"), ("2.png", pictures.contents[0])])
    unreadable: list[str] = []
    assert read(config, unreadable=unreadable)["image_id"].tolist() == [1]
    assert unreadable == [f"{tmp_path}/a.tar, sample 1 (not an image file)"]


def test_the_digest_changes_with_the_shards(pictures):
    tree = make_shards(pictures)
    before = open_source(load(tree)).digest
    write_tar(pictures.folder.parent / "shards" / "a.tar", [("0.png", pictures.contents[0])])
    assert open_source(load(tree)).digest != before


@pytest.mark.parametrize("content", [b"no tar", b"", b"cut"])
def test_files_that_are_no_tar_are_refused(pictures, tmp_path, content):
    path = write_tar(tmp_path / "a.tar", [("1.png", pictures.contents[0]), ("2.png", pictures.contents[1])])
    path.write_bytes(path.read_bytes()[:1300] if content == b"cut" else content)
    with pytest.raises(InputError, match=r"a\.tar is not a tar file, or damaged"):
        open_source(load({"source": "webdataset", "path": str(path)}))


def test_compressed_shards_and_missing_ones_are_refused(pictures, tmp_path):
    path = write_tar(tmp_path / "a.tar", [("1.png", pictures.contents[0])])
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match=r"b\.tar\.gz is compressed with gzip; decompress it"):
        open_source(load({"source": "webdataset", "path": str(tmp_path), "files": "*.tar.gz"}))
    with pytest.raises(InputError, match=r"no file matches images\.files = '\*\.wds'"):
        open_source(load({"source": "webdataset", "path": str(tmp_path), "files": "*.wds"}))
