"""Test that students of residual teachers get other widths end to end: by a search, and by a share."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

import ka_ray
from ka_ray.student import load_student
from ka_ray.teachers import build_network

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]

NETWORK = "timm/test_resnet.r160_in1k"
"""timm's smallest residual network: a stem and four blocks."""


@pytest.fixture
def load(tmp_path, randomised):
    """Return a function that loads the config of two residual teachers of five digits each."""
    teachers = []
    for name, digits in {"low": range(5), "high": range(5, 10)}.items():
        checkpoint = tmp_path / f"{name}.safetensors"
        save_file(randomised(build_network(NETWORK, {}, 5)).state_dict(), checkpoint)
        classes = [f"digit_{i}" for i in digits]
        teachers.append(
            {"name": name, "network": NETWORK, "classes": classes, "checkpoint": str(checkpoint)}
            | {"preprocessing": {"size": 32, "crop": 32}}
        )
    images = {"source": "digits", "split": "train", "size": 32, "limit": 240}
    tree = {
        "name": "resized",
        "images": images,
        "evaluation": {"images": images | {"split": "test", "limit": 40}},
        "teachers": teachers,
        "joint": {"epochs": 0},
        "ray": {"workers": 1},
        "tracking": {"backend": "none"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    return lambda *overrides: ka_ray.Config.load(tmp_path / "run.yaml", overrides)


def widths_in(folder) -> dict[str, int]:
    """Return the widths of a saved student's layers, read off its weights."""
    student = load_student(folder)
    modules = {name.split(".", 2)[2]: module for name, module in student.named_modules() if "." in name[7:]}
    return {path: len(modules[path].weight) for path in student.spec.layer_widths}


def test_a_search_over_layers_writes_a_config_that_runs(load, tmp_path):
    config = load(f"output={tmp_path}/search", "tune={trials: 3, factors: [0.5, 1], max_concurrent: 1}")
    result = ka_ray.search_widths(config)
    assert (result.failed, len(result.trials)) == ({}, 3)
    # The teachers' own widths, half of them everywhere, and a mixture.
    by_size = sorted(result.trials, key=lambda trial: trial.parameters)
    for trial in result.trials:
        folder = config.output_dir / "trials" / trial.key
        assert widths_in(folder) == trial.widths
        assert trial.parameters == sum(p.numel() for p in load_student(folder).parameters())
    assert by_size[0].widths == {path: round(width / 2) for path, width in by_size[-1].widths.items()}
    times = {path: path.stat().st_mtime_ns for path in config.output_dir.glob("trials/*/trial.json")}
    assert ka_ray.search_widths(config).chosen == result.chosen
    assert times == {path: path.stat().st_mtime_ns for path in times}

    best = ka_ray.Config.load(config.output_dir / "best.yaml", [f"output={tmp_path}/best"])
    report = ka_ray.amalgamate(best)
    assert report.start is not None
    assert report.start.source.startswith("exact")
    assert widths_in(tmp_path / "best") == result.trial(result.chosen).widths


def test_a_share_of_the_variance_becomes_widths_that_a_second_run_finds_again(load, tmp_path):
    config = load(f"output={tmp_path}/energy", "student.widths={energy: 0.9}")
    report = ka_ray.amalgamate(config)
    folder, widths = tmp_path / "energy", json.loads((tmp_path / "energy" / "widths.json").read_text())
    assert widths_in(folder) == widths
    own = {group.name: group.width for group in load_student(folder).spec.width_groups}
    assert widths.keys() == own.keys()
    assert any(widths[name] < own[name] for name in own)
    again = ka_ray.amalgamate(config)
    assert again.size == report.size
    assert torch.isfinite(torch.tensor(again.accuracy.agreement))
