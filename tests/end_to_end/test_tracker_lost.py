"""A whole run whose tracker and figures fail on the way, and whose student is built by a user's function."""

import errno
import sys

import pytest
import yaml

import ka_ray
from ka_ray.runs.student_images import build_images_config
from ka_ray.student.graph_student import GRAPH
from ka_ray.tracking import TRACKERS, NullTracker
from ka_ray.workflows.demo import save_samples

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FACTORY = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("has_run").touch()

def build(num_classes):
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, num_classes))
"""


class LostTracker(NullTracker):
    """A tracker that works for some calls, and then raises an error at every call."""

    tracking_uri = "sqlite:///lost"
    run_id = "id"

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def _count(self, *arguments, **named) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    log_params = log_metrics = log_warnings = log_artifact = log_student = finish = _count
    log_tags = describe = log_images = register_student = _count


def test_a_run_ends_with_its_student_and_report_on_disk(tmp_path, monkeypatch, config_tree, capsys):
    (tmp_path / "my_nets.py").write_text(FACTORY)
    quick = {"epochs": 2, "batch_size": 64}
    tree = config_tree | {
        "output": str(tmp_path / "run"),
        "student": {"network": "my_nets:build", "arguments": {"num_classes": 10}, "start": "random"},
        "baseline": "distill",  # needs no taps
        "joint": quick,
        "ray": {"workers": 1},
        "tracking": {"backend": "mlflow"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setitem(TRACKERS, "mlflow", lambda *arguments: LostTracker(2))

    def fill_disk(*arguments) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ka_ray.runs.publish.draw_run_figures", fill_disk)
    config = ka_ray.Config.load(tmp_path / "run.yaml")
    report = ka_ray.amalgamate(config)
    said = capsys.readouterr().out
    assert "could not be stored; the run goes on: [Errno 28] No space left on device" in said
    assert "figures are missing in" in said
    assert "tracking: sqlite:///lost lacks" in said
    assert "the student as a model" in said
    assert report.accuracy.union is not None
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"report.md", "report.html", "report.json"} <= names
    assert {"student.json", "student.safetensors", GRAPH} <= names

    # Somebody else uses the folder: without the function, and without trust in it.
    sys.modules.pop("my_nets")
    (tmp_path / "my_nets.py").unlink()
    (tmp_path / "has_run").unlink()
    (image,) = save_samples(config.images, tmp_path / "samples", 1)
    (prediction,) = ka_ray.predict(tmp_path / "run", [image])
    assert prediction.class_name in report.classes
    source = build_images_config(tmp_path / "run", "digits")
    accuracy = ka_ray.evaluate(tmp_path / "run", source)
    assert accuracy.labelled > 0
    assert 0 <= accuracy.union <= 1
    assert not (tmp_path / "has_run").exists()
