"""Test that a teacher which `ka-ray teach` has trained is a teacher in one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from ka_ray.config import Config, ImagesConfig, TeachConfig, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.images.views import make_view
from ka_ray.teachers import build_network, load_teacher
from ka_ray.teachers.checkpoint import save_weights
from ka_ray.teachers.sources.describe import describe_teacher

SECTION = {"name": "pets", "network": "plain", "arguments": {"widths": [4]}, "classes": ["cat", "dog"]}


def describe(given) -> TeacherConfig:
    return describe_teacher(TeacherConfig.model_validate(given))[0]


@pytest.fixture
def images(tmp_path):
    (tmp_path / "photos").mkdir()
    return {"source": "folder", "path": str(tmp_path / "photos"), "size": 24, "resize": "squash"}


@pytest.fixture
def save_taught(tmp_path, images):
    """Return a function that saves what `ka-ray teach` leaves: the config and the weights."""

    def save(kind=TeachConfig, **changed):
        section = SECTION | {"training": {"epochs": 1}} | changed
        described = (
            {"teacher": section}
            if kind is TeachConfig
            else {"teachers": [section, SECTION | {"name": "b", "training": {}}]}
        )
        config = kind.model_validate({"name": "x", "images": images} | described)
        folder = tmp_path / "taught"
        (folder / "pets").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
        network = build_network("plain", {"widths": [4]}, 2)
        save_weights(network, folder / "pets" / "teacher.safetensors")
        return folder, network.eval()

    return save


@pytest.mark.parametrize(
    ("kind", "inside"),
    [
        (TeachConfig, ""),
        (TeachConfig, "pets"),
        (TeachConfig, "pets/teacher.safetensors"),
        (Config, "pets"),
        (Config, "pets/teacher.safetensors"),
    ],
)
def test_what_teach_has_written_is_a_teacher(save_taught, images, kind, inside):
    folder, network = save_taught(kind)
    config = describe(str(folder / inside))
    assert (config.name, list(config.classes)) == ("pets" if inside else "taught", ["cat", "dog"])
    assert config.training is None
    # The pixels are those that it was trained with, whatever the images of the new run say.
    section = SECTION | {"training": {}}
    trained = TeachConfig.model_validate({"name": "x", "images": images, "teacher": section})
    view = make_view(trained.teacher.preprocessing, trained.images)
    other = TypeAdapter(ImagesConfig).validate_python({"source": "folder", "path": str(folder), "size": 64})
    assert make_view(config.preprocessing, other) == view
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    pixels = torch.from_numpy(view.apply(image))[None]
    mean, std = (torch.tensor(getattr(trained.teacher.preprocessing, key)) for key in ("mean", "std"))
    with torch.no_grad():
        expected = network((pixels / 255 - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(load_teacher(config).scores(pixels), expected)


def test_keys_of_the_scores_and_of_the_images_are_kept(save_taught, images):
    images["decoding"] = {"exif_orientation": True}
    folder, _ = save_taught(final_activation="softmax", output=0)
    config, note = describe_teacher(TeacherConfig.model_validate(str(folder)))
    assert (config.final_activation, config.output) == ("softmax", 0)
    assert "images.decoding: exif_orientation: True" in note
    assert describe({"from": str(folder), "final_activation": "none"}).final_activation == "none"


def test_paths_that_only_the_training_needed_may_be_gone(save_taught, tmp_path, images):
    (tmp_path / "start.pt").touch()
    folder, _ = save_taught(training={"start": str(tmp_path / "start.pt")})
    (tmp_path / "start.pt").unlink()
    (tmp_path / "photos").rmdir()
    assert list(describe(str(folder)).classes) == ["cat", "dog"]


def test_the_factory_of_a_teachers_folder_needs_consent(save_taught):
    folder, _ = save_taught()
    content = json.loads((folder / "config.json").read_text())
    content["teacher"] |= {"network": "pip._internal.cli.main:main", "arguments": {}}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"built by the function 'pip.*If you trust it, name it.*network: "):
        describe(str(folder))
    trusted = {"from": str(folder), "network": "pip._internal.cli.main:main"}
    assert describe(trusted).network == trusted["network"]


def test_a_teacher_that_is_not_trained_to_its_end_is_refused(save_taught):
    folder, _ = save_taught()
    (folder / "pets" / "teacher.safetensors").unlink()
    with pytest.raises(InputError, match=r"taught is not trained to its end; run `ka-ray teach` again"):
        describe(str(folder))


def test_a_folder_of_another_teacher_is_refused(save_taught):
    folder, _ = save_taught()
    (folder / "pets").rename(folder / "birds")
    with pytest.raises(InputError, match=r"config.json has no teacher 'birds'"):
        describe(str(folder / "birds"))
