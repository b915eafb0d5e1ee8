"""Datasets of torchvision whose files are on disk."""

import gzip
import pickle
from hashlib import md5

import numpy as np
import pytest
from PIL import Image
from source_makers import load, make_torchvision, read
from torchvision.datasets import CIFAR10

from ka_ray.config.load import load_images
from ka_ray.errors import InputError
from ka_ray.images import open_source
from ka_ray.images.decode import decode_image
from ka_ray.images.torchvision_datasets import _open_dataset

SIDE = {"MNIST": 28, "CIFAR10": 32}


def tree_of(name, root, **arguments):
    tree = {"source": "torchvision", "dataset": name, "arguments": arguments}
    return tree | ({"root": str(root)} if root else {})


@pytest.fixture(autouse=True)
def _no_dataset_is_open():
    _open_dataset.cache_clear()
    yield
    _open_dataset.cache_clear()


@pytest.fixture
def mnist(tmp_path):
    """Write the files of MNIST with ten training and four test images."""
    rng, written = np.random.default_rng(0), {}
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for stem, count in (("train", 10), ("t10k", 4)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        targets = np.arange(count, dtype=np.uint8)[::-1]
        for kind, values in (("images-idx3", pixels), ("labels-idx1", targets)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{stem}-{kind}-ubyte").write_bytes(header + values.tobytes())
        written[stem] = pixels, targets
    return tmp_path, written


def test_both_parts_of_mnist_are_read(mnist):
    root, written = mnist
    for stem, train in (("train", True), ("t10k", False)):
        config = load(tree_of("MNIST", root, train=train), size=28)
        pixels, targets = written[stem]
        columns = read(config)
        np.testing.assert_array_equal(columns["image"], np.repeat(pixels[:, None], 3, axis=1))
        names = open_source(config).class_names
        assert names[:2] == ("0 - zero", "1 - one")
        assert columns["label"].tolist() == [names[target] for target in targets]


def test_names_of_the_config_come_before_those_of_the_dataset(mnist):
    tree = tree_of("MNIST", mnist[0], train=False)
    config = load(tree, classes=[f"digit_{i}" for i in range(10)])
    assert read(config)["label"].tolist() == ["digit_3", "digit_2", "digit_1", "digit_0"]
    assert set(read(load(tree, labelled=False))["label"]) == {""}
    with pytest.raises(InputError, match="label 3 found, but only 2 classes"):
        open_source(load(tree, classes=["a", "b"]))


def test_cifar_is_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    data = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
    batch = pickle.dumps({"data": data, "labels": [3, 1, 2, 0, 9, 8]})
    meta = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    (folder / "data_batch_1").write_bytes(batch)
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5(batch).hexdigest()]])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    key = {"filename": "batches.meta", "key": "label_names", "md5": md5(meta).hexdigest()}
    monkeypatch.setattr(CIFAR10, "meta", key)
    columns = read(load(tree_of("CIFAR10", tmp_path), size=32))
    np.testing.assert_array_equal(columns["image"], data.reshape(6, 3, 32, 32))
    assert columns["label"].tolist() == [f"class {i}" for i in (3, 1, 2, 0, 9, 8)]
    (folder / "data_batch_1").write_bytes(batch + b"changed")  # torchvision compares a checksum
    _open_dataset.cache_clear()
    with pytest.raises(InputError, match=rf"corrupted.* It looks in {folder} for data_batch_1$"):
        open_source(load(tree_of("CIFAR10", tmp_path)))


def test_a_dataset_without_root_and_without_names_needs_classes():
    tree = tree_of("FakeData", None, size=7, image_size=[3, 8, 8], num_classes=2)
    with pytest.raises(InputError, match=r"images\.classes: torchvision's FakeData gives its classes no"):
        open_source(load(tree))
    columns = read(load(tree, classes=["a", "b"]))
    assert len(columns["image_id"]) == 7
    assert set(columns["label"]) <= {"a", "b"}
    np.testing.assert_array_equal(columns["image"], read(load(tree, labelled=False))["image"])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        InputError, match=rf"images\.root: .*MNIST.*It looks in {tmp_path}/MNIST/raw for train-images"
    ):
        open_source(load(tree_of("MNIST", tmp_path)))
    with pytest.raises(InputError, match=r"CIFAR10.*cifar-10-batches-py for data_batch_1, .* test_batch"):
        open_source(load(tree_of("CIFAR10", tmp_path)))
    with pytest.raises(InputError, match=r"images\.root: set root to the folder"):
        open_source(load(tree_of("MNIST", None)))


def test_a_damaged_image_is_unreadable(pictures):
    (pictures.folder / "cat" / "01.png").write_bytes(b"broken")
    unreadable: list[str] = []
    assert len(read(load(make_torchvision(pictures)), unreadable=unreadable)["image_id"]) == 11
    assert unreadable[0].startswith("ImageFolder[1]: cannot identify image file")


def test_a_file_that_would_start_a_program_is_unreadable(pictures, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the name of the file says."""

    def fail(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", fail)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (pictures.folder / "cat" / "01.png").write_bytes(postscript)
    known, unreadable = list(Image.ID), list[str]()
    assert len(read(load(make_torchvision(pictures)), unreadable=unreadable)["image_id"]) == 11
    assert unreadable[0].startswith("ImageFolder[1]: cannot identify image file")
    assert {*known} <= {*Image.ID}  # as before


@pytest.mark.parametrize("name", ["Nothing", "LSUN", "VisionDataset", "wrap_dataset_for_transforms_v2"])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"images\.dataset: .* is not one of torchvision's: .*CIFAR10"):
        open_source(load(tree_of(name, tmp_path)))


@pytest.mark.parametrize("argument", ["download", "transform", "root", "loader"])
def test_arguments_that_do_not_describe_the_dataset_are_refused(tmp_path, argument):
    with pytest.raises(InputError, match=f"arguments: {argument} cannot be set: .* never downloaded"):
        load_images({**tree_of("MNIST", tmp_path), "arguments": {argument: True}, "size": 8})


def test_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"images\.arguments: torchvision's MNIST: .*'colour'"):
        open_source(load(tree_of("MNIST", tmp_path, colour=1)))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((1, 2), "not single images"),
        (
            (Image.new("L", (8, 8)), (1, 2)),
            "targets .* are tuple, not the number of a class; set",
        ),
        ((Image.new("L", (8, 8)), Image.new("L", (8, 8)), 1), "not single images"),
    ],
)
def test_samples_that_are_not_an_image_and_a_class_are_refused(monkeypatch, sample, message):
    monkeypatch.setattr("torchvision.datasets.FakeData.__getitem__", lambda self, index: sample)
    with pytest.raises(InputError, match=message):
        open_source(load(tree_of("FakeData", None), classes=["a", "b"]))


def test_a_decoded_image_with_transparency_is_put_on_the_background():
    config = load({"source": "digits"}, decoding={"background": [9, 8, 7]})
    image = decode_image(Image.new("RGBA", (2, 2), (255, 255, 255, 0)), config.decoding)
    assert image.getpixel((0, 0)) == (9, 8, 7)


def test_the_digest_changes_with_the_arguments(mnist):
    train, test = (open_source(load(tree_of("MNIST", mnist[0], train=train))) for train in (True, False))
    assert train.digest != test.digest


def test_compressed_files_of_mnist_are_not_enough(mnist):
    """torchvision unpacks them only when it downloads."""
    root, _ = mnist
    for path in (root / "MNIST" / "raw").iterdir():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with pytest.raises(InputError, match=r"images\.root"):
        open_source(load(tree_of("MNIST", root)))
