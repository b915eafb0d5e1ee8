"""A student that starts from teachers with one trunk equals their ensemble before any step, end to end."""

import pytest
import torch
import yaml
from safetensors.torch import save_file

import ka_ray
from ka_ray.teachers.plain import plain_conv_net

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def describe_run(folder):
    teachers, trunk = [], plain_conv_net(5, widths=(4, 6)).state_dict()
    for seed, (name, digits) in enumerate({"low": range(5), "high": range(5, 10)}.items()):
        torch.manual_seed(seed)
        own = plain_conv_net(5, widths=(4, 6)).state_dict()
        state = {key: own[key] if key.startswith("head.") else value for key, value in trunk.items()}
        save_file(state, folder / f"{name}.safetensors")
        teachers.append(
            {
                "name": name,
                "network": "plain",
                "arguments": {"widths": [4, 6]},
                "classes": [f"digit_{i}" for i in digits],
                "checkpoint": str(folder / f"{name}.safetensors"),
            }
        )
    return {
        "name": "from_teachers",
        "images": {"source": "digits", "split": "train", "size": 8, "limit": 200},
        "evaluation": {"images": {"source": "digits", "split": "test", "size": 8, "limit": 100}},
        "teachers": teachers,
        "student": {"start": "average"},
        "joint": {"batch_size": 16},
        "ray": {"workers": 1},
        "tracking": {"backend": "none"},
    }


def test_teachers_with_one_trunk_become_their_ensemble_without_a_step(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(describe_run(tmp_path)))
    config = ka_ray.Config.load(tmp_path / "run.yaml", [f"output={tmp_path}/run"])
    report = ka_ray.amalgamate(config)
    assert report.choice is not None
    assert [*report.choice.qualities] == ["start"]  # joint learning has nothing to learn
    assert report.warnings == []
    assert (report.method, report.codes, report.layers) == ("start", {}, {})
    assert report.start is not None
    assert (report.start.source, report.start.random) == ("average", [])
    assert report.start.accuracy.agreement == 1
    assert report.accuracy.union == report.accuracy.ensemble
