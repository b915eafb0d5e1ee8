"""Test what `ka-ray merge` plans and `ka-ray init` writes for two small teachers, without Ray."""

import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from timm.models import save_for_hf

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.runs.stored_parts import count_missing_bytes
from ka_ray.workflows.merge import describe_plan, init, plan_merge, write_config_text
from ka_ray.workflows.merge_config import MergeRequest

CLASSES = {"pets": ["beagle", "pug", "tabby"], "birds": ["jay", "owl"]}
NAMES = [name for names in CLASSES.values() for name in names]


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    """A folder with two models of timm, and with images in folders of classes."""
    folder = tmp_path_factory.mktemp("materials")
    for name, classes in CLASSES.items():
        network = timm.create_model("mobilenetv3_small_050", num_classes=len(classes))
        save_for_hf(
            network, str(folder / name), model_config={"label_names": classes}, safe_serialization=True
        )
    rng = np.random.default_rng(0)
    for number in range(30):
        path = folder / "photos" / NAMES[number % 5] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def request_of(materials, monkeypatch):
    """Return a function that makes a request with paths relative to the folder."""
    monkeypatch.chdir(materials)
    return lambda **more: MergeRequest(["pets", "birds"], "photos", **more)


def test_the_plan_says_what_will_happen(request_of):
    planned = plan_merge(request_of(hints={"pets": "photos/pug"}))
    text = "\n".join(describe_plan(planned))
    for line in ("teacher pets: 3 classes", "teacher birds: 2 classes", "27 to learn from, 3 held out"):
        assert line in text
    assert "labels: 5 of 5 subfolders are named like a class" in text
    assert "gate: auto, with hints of pets" in text
    assert planned.config.images.labelled
    run = planned.run
    # Per image 3 x 224 x 224 pixels, 5 scores and, for the gate, two embeddings of 1024 channels in float16.
    of_image, of_hint = 3 * 224**2 + 2 * 5 + 2 * 2 * 1024, 6
    stored = count_missing_bytes(run.config, run.plan, run.training_images, run.students)
    assert stored == (27 + of_hint) * of_image


@pytest.mark.parametrize("is_written_elsewhere", [False, True])
def test_the_written_config_loads_as_the_same_config(request_of, tmp_path, monkeypatch, is_written_elsewhere):
    overrides = ["joint.epochs=1", "student.head=ridge", "teachers.birds.final_activation=none"]
    planned = plan_merge(request_of(output="runs/a", evaluate="photos", overrides=overrides))
    config, tree = planned.config, planned.tree
    if is_written_elsewhere:
        tree = config.model_dump(mode="json", exclude_unset=True)
        monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(write_config_text(planned, tree))
    loaded = Config.load(tmp_path / "a.yaml")
    assert loaded.model_dump(mode="json") == config.model_dump(mode="json")
    assert loaded.joint.epochs == 1
    assert loaded.evaluation.images.labelled


def test_init_writes_comments_and_keeps_an_existing_file(request_of, tmp_path):
    file = tmp_path / "found.yaml"
    assert init(request_of(), file) == file
    text = file.read_text()
    for comment in (
        "classes: 3: beagle, pug, tabby",
        "from config.json",
        "27 to learn from",
        "start average",
    ):
        assert comment in text.replace("\n#   ", " ")
    assert "labelled: true" in text
    assert "epochs" not in yaml.safe_load(text).get("joint", {})  # the run chooses them again
    assert "# joint: epochs: 30, because there are few images" in text
    with pytest.raises(InputError, match=r"found\.yaml exists; --force overwrites it"):
        init(request_of(), file)
    file.write_text("mine")
    init(request_of(), file, force=True)
    assert file.read_text() == text


def test_init_prints_what_should_not_be_missed_in_the_file(request_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ka_ray.runs.teacher_checks.compare_sizes", lambda teachers: ["different sizes"])
    text = init(request_of(), tmp_path / "found.yaml").read_text()
    assert "# warning: different sizes" in text
    assert "warning: different sizes" in capsys.readouterr().err.splitlines()
