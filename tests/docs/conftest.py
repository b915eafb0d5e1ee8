"""A folder with all files that the commands of the documentation name."""

import numpy as np
import pytest
import yaml
from command_rules import WorkReached
from doc_pages import PAGES, REPOSITORY, find_blocks
from PIL import Image

import ka_ray
from ka_ray.config import Config, TeachConfig, with_overrides
from ka_ray.formats.registry import find_format
from ka_ray.runs.variants import expand_variants, with_one_start
from ka_ray.storage import files
from ka_ray.student import Student, save_student
from ka_ray.submission import submit as submitting


def find_yaml(name):
    """Return the YAML block that describes the run of this name."""
    found = {b.text for page in PAGES for b in find_blocks(page) if b.text.startswith(f"name: {name}\n")}
    [text] = found  # all pages must show the same block
    return text


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def checkout(tmp_path, monkeypatch, make_spec):
    """A folder like a checkout in which the examples have been run; data, teachers and students are fake."""
    folder = tmp_path / "ka_ray"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (folder / "jobs").symlink_to(REPOSITORY / "jobs")
    for name in ("cifar10", "sign-digits/train", "sign-digits/test"):
        (tmp_path / "shared" / "data" / name).mkdir(parents=True)
    for name in "ab":
        teacher_folder = folder / f"runs/cifar10_teacher_{name}/{name}"
        teacher_folder.mkdir(parents=True)
        (teacher_folder / "teacher.safetensors").touch()
    for name in ("dogs.safetensors", "birds.pt", "birds.ckpt", "cats.safetensors", "imagenet.pt"):
        (folder / name).touch()
    (folder / "hf" / "dogs").mkdir(parents=True)
    (folder / "hf" / "dogs" / "config.json").write_text("{}")
    for name in ("dogs", "birds", "cats"):
        (folder / f"{name}.txt").write_text(f"{name}_1\n{name}_2\n")
    save_image(folder / "photos" / "some" / "1.jpg")
    save_image(folder / "photos" / "1.jpg")
    photos = ("dogs", "birds", "landscapes", "unsorted")
    for name in [
        *(f"photos/{name}" for name in photos),
        *(f"hints/{name}" for name in ("dogs", "birds", "cars")),
    ]:
        save_image(folder / name / "1.jpg")
    (folder / "photos.csv").write_text("path,teacher\nphotos/1.jpg,dogs\n")
    (folder / "list.csv").write_text("file,kind\nsome/1.jpg,dogs_1\n")
    save_image(folder / "runs" / "demo" / "samples" / "0_digit_4.png")
    student = Student(make_spec("plain", {"conv1": 4}))
    for name in ("demo", "pets", "my_student"):
        save_student(student, folder / "runs" / name)
    write_configs(folder)
    return folder


def write_configs(folder):
    """Write the configs that the pages name but that are not files of the repository."""
    pets = yaml.safe_load(find_yaml("pets"))
    my_student = pets | {"name": "my_student", "images": pets["images"] | {"labelled": True}}
    cats = {"name": "cats", "network": "vgg11_bn", "checkpoint": "cats.safetensors", "classes": "cats.txt"}
    three = pets | {"teachers": [*pets["teachers"], cats], "codes": {"method": "incremental"}}
    (folder / "runs" / "two").mkdir()
    for name, tree in {
        "pets": pets,
        "my": my_student,
        "three": three,
        "runs/my_student/best": my_student,
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture
def checkout_without_work(checkout, monkeypatch):
    """The folder of `checkout`; functions that would take long raise `WorkReached` instead."""

    def stop(config, *rest):
        assert isinstance(config, Config | TeachConfig | None)
        raise WorkReached

    def stop_comparison(config, methods, num_seeds, vary):
        for overrides in expand_variants(methods, vary).values():
            with_overrides(with_one_start(config), overrides)
        raise WorkReached

    def stop_server(folder, port, on_page, notify):
        raise WorkReached

    def stop_evaluation(folder, images, *, trust):
        raise WorkReached

    def stop_export(folder, format, output, *, quantize, preprocessing, min_agreement, **options):
        find_format(format, preprocessing, quantize is not None)
        raise WorkReached

    def stop_submission(address):
        raise WorkReached  # the next step needs a cluster

    def stop_before_models(*_):
        raise WorkReached  # the next step reads the models, which are fake

    monkeypatch.setattr("ka_ray.workflows.merge.check_first", lambda config: None)
    monkeypatch.setattr("ka_ray.workflows.merge.describe_teachers", stop_before_models)
    monkeypatch.setattr("ka_ray.workflows.inspect.describe_model", stop_before_models)
    monkeypatch.setattr("ka_ray.workflows.browse.browse", stop_server)
    monkeypatch.setattr("ka_ray.workflows.doctor.diagnose", stop)
    for name in ("amalgamate", "search_widths", "measure_spectrum", "teach"):
        monkeypatch.setattr(ka_ray, name, stop, raising=False)
    monkeypatch.setattr(ka_ray, "compare", stop_comparison, raising=False)
    monkeypatch.setattr(ka_ray, "evaluate", stop_evaluation, raising=False)
    monkeypatch.setattr(ka_ray, "export", stop_export, raising=False)
    monkeypatch.setattr(submitting, "connect_job_client", stop_submission)
    exists = files.exists
    monkeypatch.setattr("ka_ray.config.base.exists", lambda path: files.is_remote(path) or exists(path))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:24001")  # as `cluster/local.sh env` sets it
    return checkout
