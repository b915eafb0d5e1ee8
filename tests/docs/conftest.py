"""A folder in which the commands of the documentation find what they name."""

import numpy as np
import pytest
import yaml
from command_rules import Reached
from doc_pages import PAGES, REPOSITORY, blocks
from PIL import Image

import ka_ray
from ka_ray.config import Config, TeachConfig, with_overrides
from ka_ray.runs.variants import expand_variants
from ka_ray.storage import files
from ka_ray.student import Student, save_student
from ka_ray.submission import submit as submitting


def find_yaml(name):
    """Return the YAML block that describes the run of this name."""
    found = {b.text for page in PAGES for b in blocks(page) if b.text.startswith(f"name: {name}\n")}
    [text] = found  # every page shows the same one
    return text


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def workplace(tmp_path, monkeypatch, make_spec):
    """A checkout in which somebody has run the examples, with stand-ins for data, teachers and students."""
    place = tmp_path / "ka_ray"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (place / "jobs").symlink_to(REPOSITORY / "jobs")
    for folder in ("cifar10", "sign-digits/train", "sign-digits/test"):
        (tmp_path / "shared" / "data" / folder).mkdir(parents=True)
    for name in "ab":
        taught = place / f"runs/cifar10_teacher_{name}/{name}"
        taught.mkdir(parents=True)
        (taught / "teacher.safetensors").touch()
    for name in ("dogs.safetensors", "birds.pt", "cats.safetensors"):
        (place / name).touch()
    for name in ("dogs", "birds", "cats"):
        (place / f"{name}.txt").write_text(f"{name}_1\n{name}_2\n")
    save_image(place / "photos" / "some" / "1.jpg")
    save_image(place / "photos" / "1.jpg")
    save_image(place / "runs" / "demo" / "samples" / "0_digit_4.png")
    student = Student(make_spec("plain", {"conv1": 4}))
    for name in ("demo", "pets", "my_student"):
        save_student(student, place / "runs" / name)
    write_configs(place)
    return place


def write_configs(place):
    """Write the configs that the pages name but that the repository does not hold."""
    pets = yaml.safe_load(find_yaml("pets"))
    my_own = pets | {"name": "my_student", "images": pets["images"] | {"labelled": True}}
    cats = {"name": "cats", "network": "vgg11_bn", "checkpoint": "cats.safetensors", "classes": "cats.txt"}
    three = pets | {"teachers": [*pets["teachers"], cats], "codes": {"method": "incremental"}}
    (place / "runs" / "two").mkdir()
    for name, tree in {
        "pets": pets,
        "my": my_own,
        "three": three,
        "runs/my_student/best": my_own,
    }.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture
def stand_ins(workplace, monkeypatch):
    """The folder of `workplace`, in which nothing is started that takes long."""

    def stop(config, *rest):
        assert isinstance(config, Config | TeachConfig)
        raise Reached

    def stop_comparison(config, methods, num_seeds, vary):
        for overrides in expand_variants(methods, vary).values():
            with_overrides(config, overrides)
        raise Reached

    def stop_evaluation(folder, images):
        raise Reached

    def stop_submission(address):
        raise Reached  # from here on, a cluster is needed

    for name in ("amalgamate", "search_widths", "measure_spectrum", "teach"):
        monkeypatch.setattr(ka_ray, name, stop, raising=False)
    monkeypatch.setattr(ka_ray, "compare", stop_comparison, raising=False)
    monkeypatch.setattr(ka_ray, "evaluate", stop_evaluation, raising=False)
    monkeypatch.setattr(submitting, "connect_job_client", stop_submission)
    exists = files.exists
    monkeypatch.setattr("ka_ray.config.base.exists", lambda path: files.is_remote(path) or exists(path))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:24001")  # as `cluster/local.sh env` sets it
    return workplace
