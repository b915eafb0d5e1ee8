"""Runs with residual teachers, overlapping label sets and images of none of their classes, end to end."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import ka_ray
from ka_ray.student import load_student
from ka_ray.teachers import build_network

# Other tests cut and fold these networks without Ray; test_own_pixels.py runs teachers of different pixels.
pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLASSES = {"low": [f"digit_{i}" for i in range(6)], "high": [f"digit_{i}" for i in (8, 9, 4, 7, 5, 6)]}
QUICK = {"epochs": 1, "batch_size": 16}


def describe_run(folder, network, taps):
    """Return a config whose student learns from unlabelled noise and is evaluated on labelled digits."""
    teachers, rng = [], np.random.default_rng(0)
    (folder / "noise").mkdir()
    for i in range(80):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"noise/{i}.png")
    for seed, (name, classes) in enumerate(CLASSES.items()):
        torch.manual_seed(seed)
        checkpoint = folder / f"{name}.safetensors"
        save_file(build_network(network, {}, len(classes)).state_dict(), checkpoint)
        teachers.append(
            {"name": name, "network": network, "checkpoint": str(checkpoint), "classes": classes}
            | {"preprocessing": {"size": 32 if name == "low" else 48}}
        )
    return {
        "name": "pair",
        "output": str(folder / "run"),
        "images": {"source": "folder", "path": str(folder / "noise"), "labelled": False, "size": 16},
        "teachers": teachers,
        "taps": taps,
        "scores": {"views": "flip"},
        "extract": {"images": 48},
        "codes": QUICK | {"positions_per_image": 4},
        "layers": QUICK,
        "joint": QUICK | {"learning_rate": 1e-4},
        "evaluation": {
            "each_epoch": True,
            "images": {"source": "digits", "split": "test", "size": 16, "limit": 40},
        },
        "ray": {"workers": 1},
        "tracking": {"backend": "none"},
    }


@pytest.mark.parametrize(
    ("network", "taps", "kept_channels"),
    [
        # A block of a ResNet ends in an activation, into which an adapter cannot be folded: both are kept.
        ("resnet18", {"early": "layer1", "late": "layer3"}, {"early": 64, "late": 256}),
        # features.2 ends in a conv with batch norm, so its adapter is folded; features.8 ends in a shortcut.
        ("mobilenet_v3_small", {"early": "features.2", "late": "features.8"}, {"late": 48}),
    ],
)
def test_two_teachers_become_one_student_of_the_same_network(tmp_path, network, taps, kept_channels):
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(describe_run(tmp_path, network, taps)))
    report = ka_ray.amalgamate(ka_ray.Config.load(tmp_path / "pair.yaml"))
    # The number of parameters of a 1x1 conv with a bias.
    expected = {tap: channels**2 + channels for tap, channels in kept_channels.items()}
    assert report.kept_adapters == expected
    assert report.classes == [f"digit_{i}" for i in (0, 1, 2, 3, 4, 5, 8, 9, 7, 6)]
    assert report.rule == "mean"
    assert report.overlap == {"digit_4": ["low", "high"], "digit_5": ["low", "high"]}
    without_adapters = sum(p.numel() for p in build_network(network, {}, 10).parameters())
    assert report.size.student.parameters == without_adapters + sum(expected.values())
    assert report.accuracy.labelled == report.accuracy.images == 40
    assert 0 <= report.accuracy.agreement <= 1
    assert report.accuracy.union is not None
    assert report.accuracy.ensemble_over_views is not None
    assert len(report.curve) == 1
    assert report.curve[-1].accuracy == report.accuracy
    student = load_student(tmp_path / "run")
    scores = student(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert scores.shape == (2, 10)
    assert torch.isfinite(scores).all()
