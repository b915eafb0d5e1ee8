"""A small run like the template `folder.yaml`: torchvision teachers, two taps, images without labels."""

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

import ka_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize(
    ("network", "taps"),
    [
        ("alexnet", {"conv3": "features.6", "conv5": "features.10"}),
        ("vgg11_bn", {"conv3_2": "features.12", "conv5_2": "features.26"}),
    ],
)
def test_without_labels_only_agreement_is_reported(tmp_path, network, taps):
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "photos" / f"{i % 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(path)
    teachers = []
    for name in ("dogs", "birds"):
        torch.manual_seed(len(name))
        state = torchvision.models.get_model(network, num_classes=3).state_dict()
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / f"{name}.pt")
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name}_{i}" for i in range(3)))
        files = {"checkpoint": str(tmp_path / f"{name}.pt"), "classes": str(tmp_path / f"{name}.txt")}
        teachers.append({"name": name, "network": network, **files})
    quick = {"epochs": 1, "batch_size": 8}
    tree = {
        "name": "pets",
        "output": str(tmp_path / "run"),
        "images": {"source": "folder", "path": str(tmp_path / "photos"), "labelled": False}
        | {"size": 64, "resize": "crop"},
        "teachers": teachers,
        "taps": taps,
        "codes": quick,
        "layers": quick,
        "joint": quick | {"loss": "kl", "augment": {"flip": True}},
        "ray": {"workers": 1},
        "tracking": {"backend": "none"},
    }
    (tmp_path / "pets.yaml").write_text(yaml.safe_dump(tree))
    report = ka_ray.amalgamate(ka_ray.Config.load(tmp_path / "pets.yaml"))
    assert report.accuracy.union is None
    assert report.accuracy.ensemble is None
    assert 0 <= report.accuracy.agreement <= 1
    assert report.accuracy.images == 4
    assert report.accuracy.labelled == 0
    assert report.classes == [f"{name}_{i}" for name in ("dogs", "birds") for i in range(3)]
    assert set(report.codes) == set(taps)
    assert "no labels" in (tmp_path / "run" / "report.md").read_text()
    student = ka_ray.load_student(tmp_path / "run")
    assert student(torch.zeros(1, 3, 64, 64)).shape == (1, 6)
    assert not (tmp_path / "run" / "figures" / "confusion.png").exists()
