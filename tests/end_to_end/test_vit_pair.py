"""Two vision transformers of one origin go through the average of their weights and joint learning."""

import pytest
import torch
from safetensors.torch import save_file

import ka_ray
from ka_ray.teachers import build_network

pytest.importorskip("timm")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

ARGUMENTS = {"img_size": 32, "patch_size": 8}


def describe_run(folder):
    torch.manual_seed(0)
    common = build_network("timm/vit_tiny_patch16_224", ARGUMENTS, 5)
    save_file(common.state_dict(), folder / "common.safetensors")
    training = {"epochs": 4, "batch_size": 32, "learning_rate": 0.0005}
    teachers = [
        {
            "name": name,
            "network": "timm/vit_tiny_patch16_224",
            "arguments": ARGUMENTS,
            "classes": [f"digit_{i}" for i in digits],
            "preprocessing": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
            "training": training | {"start": str(folder / "common.safetensors")},
        }
        for name, digits in {"low": range(5), "high": range(5, 10)}.items()
    ]
    return {
        "name": "vit_pair",
        "output": str(folder / "run"),
        "images": {"source": "digits", "split": "train", "size": 32},
        "evaluation": {"images": {"source": "digits", "split": "test", "size": 32}},
        "teachers": teachers,
        "ray": {"workers": 1},
        "tracking": {"backend": "none"},
    }


def test_transformers_of_one_origin_are_averaged_and_learn_jointly(tmp_path):
    report = ka_ray.amalgamate(ka_ray.Config.model_validate(describe_run(tmp_path)))
    assert report.start is not None
    assert report.choice is not None
    judged = {candidate.name: candidate for candidate in report.start.candidates}
    assert {"average", "average, ridge head", "teacher low"} <= judged.keys()
    assert judged[report.start.source].agreement > 0.5
    assert report.accuracy.union is not None
    assert report.accuracy.ensemble is not None
    print(report.to_markdown())
    assert report.accuracy.union >= 0.9 * report.accuracy.ensemble
