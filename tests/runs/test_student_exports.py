"""Test that a run writes the graph of its student, and that without trust nothing else of its folder runs."""

import errno
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ka_ray import load_student, predict
from ka_ray.config import Resources
from ka_ray.distributed.evaluator import Evaluation, Evaluator
from ka_ray.runs.steps import export_graph
from ka_ray.runs.student_images import build_images_config
from ka_ray.student import Student, save_student
from ka_ray.student.graph_student import GRAPH, GraphStudent

FACTORY = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("has_run").touch()

def build(num_classes):
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)]
    return nn.Sequential(*layers)
"""


@pytest.fixture
def student(tmp_path, monkeypatch, make_spec) -> Student:
    (tmp_path / "somebodys_nets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "somebodys_nets", raising=False)
    return Student(make_spec("somebodys_nets:build", {}, num_classes=4)).eval()


def save(student: Student, folder: Path) -> None:
    """Save a student as a run does, and forget the module of its function."""
    assert export_graph(student, folder) is None
    save_student(student, folder)
    sys.modules.pop("somebodys_nets")
    (folder.parent / "has_run").unlink()


def test_predict_and_evaluate_use_the_graph_of_a_folder_without_trust(student, tmp_path):
    folder = tmp_path / "run"
    save(student, folder)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    with torch.inference_mode():
        expected = student(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]).softmax(1)[0]
    (prediction,) = predict(folder, [tmp_path / "image.png"])
    assert prediction.probability == pytest.approx(float(expected.max()), abs=1e-5)
    assert prediction.class_name == student.spec.classes[int(expected.argmax())]

    (tmp_path / "images" / "class_0").mkdir(parents=True)
    assert build_images_config(folder, str(tmp_path / "images")).size == 8
    work = Evaluation(None, student.spec.unified_label_sets, [], {"student": folder})
    evaluator = Evaluator(work, Resources(cpu=1))
    assert isinstance(evaluator._students["student"], GraphStudent)
    batch = {
        "image": np.repeat(pixels.transpose(2, 0, 1)[None], 3, axis=0),
        "label": np.array(["class_0", "class_1", "nothing"], dtype=object),
        "image_id": np.arange(3),
    }
    assert evaluator(batch)["image_ids"][0].tolist() == [0, 1, 2]
    assert not (tmp_path / "has_run").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        work = Evaluation(None, student.spec.unified_label_sets, [], {"student": folder}, trust=True)
        assert isinstance(Evaluator(work, Resources(cpu=1))._students["student"], Student)
    assert (tmp_path / "has_run").exists()


@pytest.mark.parametrize("network", ["plain", "resnet18", "ka_ray.teachers.plain:plain_conv_net"])
def test_students_that_everybody_can_build_have_no_graph(tmp_path, make_spec, network):
    arguments = {} if network == "resnet18" else {"widths": [4]}
    arguments |= {"num_classes": 4} if ":" in network else {}
    taps = {"conv1": 4} if network == "plain" else {}
    student = Student(make_spec(network, taps, image_size=32, **arguments))
    assert export_graph(student, tmp_path) is None
    assert not (tmp_path / GRAPH).exists()


def test_a_run_goes_on_if_the_graph_cannot_be_written_and_says_so(student, tmp_path, monkeypatch):
    def fill_disk(*arguments, **options) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ka_ray.student.exported_graph.save_file", fill_disk)
    note = export_graph(student, tmp_path / "run")
    assert note is not None
    assert note.startswith("the student has no exported graph, so using it needs its function and --trust: ")
    assert "No space left on device" in note
    save_student(student, tmp_path / "run")
    assert isinstance(load_student(tmp_path / "run", trust=True), Student)
