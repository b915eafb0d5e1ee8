"""Test the config that is built from teachers and a folder of images, and what is found out about folders."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ka_ray.config import FolderImages
from ka_ray.errors import InputError
from ka_ray.workflows.merge_choices import choose, find_labels
from ka_ray.workflows.merge_config import MergeRequest, build_config, parse_hints, to_overrides


def save_image(path: Path, width: int = 8, height: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder: two models, of which no byte is read here, and a folder of images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf" / "dogs").mkdir(parents=True)
    (tmp_path / "birds.ckpt").touch()
    save_image(tmp_path / "photos" / "1.png")
    return tmp_path


def names_of(*teachers, **more) -> list[str]:
    return [t.name for t in build_config(MergeRequest(teachers, "photos", **more))[0].teachers]


def test_two_models_and_a_folder_are_a_config(folder):
    config, tree = build_config(MergeRequest(["hf/dogs", "birds.ckpt"], "photos"))
    assert tree == {
        "name": "dogs_birds",
        "images": {"source": "folder", "path": "photos", "labelled": False, "size": 224},
        "teachers": [{"name": "dogs", "from": "hf/dogs"}, {"name": "birds", "from": "birds.ckpt"}],
    }
    assert config.output_dir == folder / "runs" / "dogs_birds"
    assert [t.from_ for t in config.teachers] == [str(folder / "hf" / "dogs"), str(folder / "birds.ckpt")]
    assert (config.student.start, config.joint.batch_size) == ("auto", 32)


def test_output_hints_evaluation_images_and_overrides_are_in_the_config(folder):
    save_image(folder / "test" / "1.png")
    request = MergeRequest(
        ["hf/dogs", "birds.ckpt"],
        "photos",
        output="runs/my pets/",
        hints={"dogs": "photos", "nobody": "test"},
        evaluate="test",
        overrides=["teachers.birds.classes=[jay, owl]", "joint.epochs=1", "images.size=64"],
    )
    config, _ = build_config(request)
    assert config.name == "my_pets"
    assert config.output_dir == folder / "runs" / "my pets"
    assert config.scores.hints == {"dogs": folder / "photos", "nobody": folder / "test"}
    assert config.gates == ("hints",)
    assert config.evaluation.images.path == folder / "test"
    assert config.teachers[1].classes == ("jay", "owl")
    assert (config.joint.epochs, config.images.size) == (1, 64)


def test_other_kinds_of_sources_are_told_by_their_path(folder):
    (folder / "photos.csv").write_text("path\nphotos/1.png\n")
    config, _ = build_config(MergeRequest(["hf/dogs", "birds.ckpt"], "photos.csv"))
    assert (config.images.source, config.images.has_labels) == ("list", False)


def test_names_are_given_or_made_valid_and_unique(folder):
    for path in ("a/net.pt", "b/net.pt", "ümlaut x.pt", "epoch=9-step=100.ckpt", "nobody.pt", "c/student.pt"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    assert names_of("a/net.pt", "b/net.pt", "net_2=birds.ckpt") == ["net", "net_3", "net_2"]
    assert names_of("my-dogs=hf/dogs", "ümlaut x.pt") == ["my-dogs", "mlaut_x"]
    assert names_of("epoch=9-step=100.ckpt", "hf/dogs") == ["epoch_9-step_100", "dogs"]
    assert names_of("nobody.pt", "c/student.pt") == ["nobody_2", "c"]
    assert names_of({"from": "hf/dogs", "classes": ["a", "b"]}, Path("birds.ckpt")) == ["dogs", "birds"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "nowhere"}, "--images nowhere does not exist"),
        ({"evaluate": "nowhere"}, "--evaluate nowhere does not exist"),
        ({"teachers": ["hf/dogs", "no/such.pt"]}, r"teachers\.1\.from: .*such\.pt does not exist; accepted"),
        ({"teachers": ["hf/dogs"]}, "at least two are needed"),
        ({"teachers": ["a=hf/dogs", "a=birds.ckpt"]}, "names must be unique"),
        ({"teachers": [{"classes": ["a", "b"]}, "birds.ckpt"]}, r"teachers\.0\.name"),
        (
            {"hints": {"cats": "photos"}},
            "hints cats=photos: no teacher is called cats; there are dogs, birds, ",
        ),
        ({"hints": {"dogs": "nowhere"}}, r"scores\.hints\.dogs: .*nowhere does not exist"),
        ({"overrides": ["joint.epoch=1"]}, r"joint\.epoch: unknown key"),
        ({"overrides": ["teachers.cats.classes=[a, b]"]}, "'cats' must be an index below 2"),
    ],
)
def test_what_cannot_be_merged_is_refused(change, message):
    given = {"teachers": ["hf/dogs", "birds.ckpt"], "images": "photos"} | change
    with pytest.raises(InputError, match=message):
        build_config(MergeRequest(**given))


def test_hints_are_parsed_and_wrong_ones_refused():
    assert parse_hints(["dogs=a=b", "nobody=/x y"]) == {"dogs": "a=b", "nobody": "/x y"}
    with pytest.raises(InputError, match="--hints 'photos/dogs': must read NAME=FOLDER"):
        parse_hints(["photos/dogs"])
    with pytest.raises(InputError, match="--hints 'dogs=b': dogs has a folder already"):
        parse_hints(["dogs=a", "dogs=b"])


def test_keyword_arguments_become_overrides_that_add_to_sections(folder):
    values = {
        "seed": 3,
        "joint": {"epochs": 2, "learning_rate": 1e-5},
        "student": {"start": {"teacher": "dogs"}},
    }
    overrides = to_overrides({**values, "scores.hints": {"dogs": folder / "photos"}})
    config, _ = build_config(MergeRequest(["hf/dogs", "birds.ckpt"], "photos", overrides=overrides))
    assert (config.seed, config.joint.epochs, config.joint.learning_rate) == (3, 2, 1e-5)
    assert config.student.start.teacher == "dogs"
    assert config.scores.hints == {"dogs": folder / "photos"}


CLASSES = ("beagle", "pug", "jay", "owl")


@pytest.mark.parametrize(
    ("files", "labelled", "reason"),
    [
        (["1.png"], False, "there are no subfolders"),
        (["2023/1.png", "2024/1.png"], False, "0 of 2 subfolders are named like a class"),
        (["beagle/1.png", "owl/deep/1.png"], True, "2 of 2 subfolders are named like a class"),
        (["beagle/1.png", "owl/1.png", "car/1.png"], True, "2 of 3 .* images in 'car' count as of no class"),
        (["beagle/1.png", "x/1.png", "y/1.png"], False, r"1 of 3 .* \(not 'x', 'y'\)$"),
        (["beagle/1.png", "owl/1.png", "1.png"], False, "some images are in none"),
        (["Beagle/1.png", "Owl/1.png"], False, "must be spelled like the classes"),
        (
            ["dogs/1.png", "other/1.png"],
            False,
            "--hints can say that 'dogs' show the classes of that teacher",
        ),
        (["beagle/1.png", ".cache/1.png", "owl/.thumbs/1.png", ".DS_Store"], True, "1 of 1|2 of 2"),
    ],
)
def test_a_folder_is_labelled_if_its_subfolders_are_classes(folder, files, labelled, reason):
    for name in files:
        save_image(folder / "some" / name) if name.endswith("g") else (folder / "some" / name).touch()
    images = FolderImages(source="folder", path=folder / "some", size=8)
    found = find_labels(images, CLASSES, ["dogs", "birds"])
    assert found.value is labelled
    assert re.search(reason, found.reason), found.reason


def described(folder, *overrides):
    """The config after its teachers are described: dogs names a size of images, birds does not."""
    own = ["teachers.dogs.preprocessing={size: 96}", "teachers.dogs.classes=[beagle, pug]"]
    given = [*own, "teachers.birds.classes=[jay, owl]", *overrides]
    return build_config(MergeRequest(["hf/dogs", "birds.ckpt"], "some", overrides=given))[0]


def test_the_size_is_that_of_small_images_which_are_all_the_same(folder):
    for number in range(4):
        save_image(folder / "some" / f"{number}.png", 32, 32)
    choice = choose(described(folder))["images.size"]
    assert (choice.value, "all images that were looked at are 32 x 32" in choice.reason) == (32, True)
    assert "'birds'" in choice.reason
    save_image(folder / "some" / "5.png", 32, 33)
    assert choose(described(folder))["images.size"].value == 224
    every = choose(described(folder, "teachers.birds.preprocessing={size: 64}"))["images.size"]
    assert every.reason == "not used: every teacher names its own size"


def test_few_images_get_smaller_batches(folder):
    for number in range(24):
        save_image(folder / "some" / f"{number}.png")
    # Of 24 images, 2 are held out to evaluate, and 2 to choose the student: 20 remain.
    assert choose(described(folder))["joint.batch_size"].value == 16
    save_image(folder / "test" / "1.png")
    others = "evaluation.images={source: folder, path: test, labelled: false, size: 8}"
    assert choose(described(folder, others, "images.limit=10"))["joint.batch_size"].value == 8
    assert "joint.batch_size" not in choose(described(folder, "joint.batch_size=10"))


def test_a_folder_without_images_is_refused(folder):
    (folder / "some").mkdir()
    with pytest.raises(InputError, match=r"images\.path .*some: no image files"):
        choose(described(folder))
