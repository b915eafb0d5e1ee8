import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ka_ray.metrics import accuracies, count
from ka_ray.report import NO_LABELS, REPORT_SCHEMA, Report, measure_size

SIZE = {"parameters": 1000, "macs": 2_500_000, "bytes": 4096}


def content(labelled: bool = True) -> dict[str, Any]:
    scores = np.eye(4)
    targets = np.arange(4) if labelled else np.full(4, -1)
    columns = [[0, 1], [2, 3]]
    counts = count(targets, scores, scores, [scores[:, c] for c in columns], columns)
    return {
        "name": "run",
        "classes": ["cat", "dog", "cow", "a|b"],
        "accuracy": accuracies(counts, ["low", "high"]),
        "size": {"student": SIZE, "teachers": SIZE, "per_teacher": {"low": SIZE, "high": SIZE}},
        "codes": {"conv1": {"width": 4, "stacked": 8, "relative_error": 0.25, "optimal_relative_error": 0.2}},
        "layers": {"conv1": {"relative_error": 0.125}, "scores": {"relative_error": 0.5}},
        "stages": {
            "joint": {"seconds": 1.5, "images_per_s": 10.0},
            "extract": {"seconds": 12.25, "images_per_s": 3.0},
        },
        "ray": {"nodes": 1, "cpus": 2, "gpus": 0},
        "placements": [{"teacher": "low", "node": "n", "gpus": [0], "device": "cuda:0", "pid": 7}],
        "unreadable": ["broken.png (truncated)"],
        "mlflow": {"tracking_uri": "sqlite:////tmp/my runs/mlflow.db", "run_id": "abc"},
    }


def required(name: str) -> set[str]:
    part = REPORT_SCHEMA if name == "Report" else REPORT_SCHEMA["$defs"][name]
    assert part["additionalProperties"] is False
    return set(part["required"])


def test_the_schema_requires_every_key() -> None:
    assert required("Report") == {
        *("name", "classes", "accuracy", "size", "codes", "layers", "stages"),
        *("ray", "placements", "unreadable", "mlflow"),
    }
    assert required("Accuracy") == {"union", "ensemble", "agreement", "per_teacher", "images", "labelled"}
    assert required("Pair") == {"teacher", "student"}
    assert required("Sizes") == {"student", "teachers", "per_teacher"}
    assert required("Size") == {"parameters", "macs", "bytes"}
    assert required("Code") == {"width", "stacked", "relative_error", "optimal_relative_error"}
    assert required("Layer") == {"relative_error"}
    assert required("Speed") == {"seconds", "images_per_s"}
    assert required("Cluster") == {"nodes", "cpus", "gpus"}
    assert required("Placement") == {"teacher", "node", "gpus", "device", "pid"}
    assert required("MlflowRun") == {"tracking_uri", "run_id"}


@pytest.mark.parametrize(
    "change",
    [{"extra": 1}, {"classes": None}, {"stages": {"sleep": {"seconds": 1, "images_per_s": 1}}}],
)
def test_what_does_not_fit_the_schema_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Report.model_validate(content() | change)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_saved_report_is_loaded_unchanged(tmp_path: Path, labelled: bool) -> None:
    report = Report.model_validate(content(labelled))
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert json.loads((tmp_path / "report.json").read_text()) == report.model_dump(mode="json")
    assert (tmp_path / "report.md").read_text() == report.to_markdown()


def test_markdown_tells_all_that_a_reader_asks_for() -> None:
    text = Report.model_validate(content()).to_markdown()
    assert NO_LABELS not in text
    assert "| all classes (teachers: their ensemble) | 1.000 | 1.000 |" in text
    assert "| conv1 | 4 of 8 | 0.25 | 0.2 | 0.125 |" in text
    assert "| scores | - | - | - | 0.5 |" in text
    assert text.index("| extract | 12.2 | 3 |") < text.index("| joint | 1.5 | 10 |")
    assert "broken.png" in text
    assert "mlflow ui --backend-store-uri 'sqlite:////tmp/my runs/mlflow.db'" in text


def test_markdown_says_that_there_are_no_labels() -> None:
    text = Report.model_validate(content(labelled=False)).to_markdown()
    assert NO_LABELS in text
    assert "Agreement of student and ensemble on 4 images: 1.000." in text
    assert "all classes" not in text


def test_tables_survive_a_bar_in_a_name() -> None:
    given = content()
    given["codes"] = {"a|b": given["codes"]["conv1"]}
    assert r"| a\|b | 4 of 8 |" in Report.model_validate(given).to_markdown()


def test_size_of_a_conv_and_a_linear_layer_is_the_one_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    ).eval()
    size = measure_size(network, torch.zeros(1, 3, 8, 6))
    assert size.macs == 8 * 6 * 5 * 3 * 9 + 5 * 2
    assert size.parameters == (5 * 3 * 9 + 5) + 2 * 5 + (5 * 2 + 2)
    assert size.bytes == 4 * size.parameters + 4 * 2 * 5 + 8  # running mean and variance; a step count
    assert measure_size(network.half(), torch.zeros(1, 3, 8, 6).half()).bytes < size.bytes
