import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ka_ray.metrics import compute_accuracies, count_batch
from ka_ray.reports.markdown import NO_LABELS
from ka_ray.reports.network_size import measure_size
from ka_ray.reports.report import REPORT_SCHEMA, Report

SIZE = {"parameters": 1000, "macs": 2_500_000, "bytes": 4096}


def judged(labelled: bool = True, union: float = 1.0, views: bool = False) -> dict[str, Any]:
    """Accuracies on four images, one a class; the student is right on a share of them."""
    scores = np.eye(4)
    said = np.roll(scores, 1, axis=1)
    said[: round(4 * union)] = scores[: round(4 * union)]
    targets = np.arange(4) if labelled else np.full(4, -1)
    columns = [[0, 1], [2, 3]]
    averaged = np.eye(4)[[0, 1, 2, 0]] if views else None
    counts = count_batch(targets, said, scores, [scores[:, c] for c in columns], columns, averaged)
    return compute_accuracies(counts, ["low", "high"])


def content(labelled: bool = True) -> dict[str, Any]:
    return {
        "name": "run",
        "classes": ["cat", "dog", "cow", "a|b"],
        "method": "direct",
        "rule": "concatenate",
        "centered": False,
        "overlap": {},
        "accuracy": judged(labelled),
        "curve": [],
        "size": {"student": SIZE, "teachers": SIZE, "per_teacher": {"low": SIZE, "high": SIZE}},
        "kept_adapters": {},
        "codes": {"conv1": {"width": 4, "stacked": 8, "relative_error": 0.25, "optimal_relative_error": 0.2}},
        "extension": None,
        "layers": {
            "conv1": {"relative_error": 0.125, "ridge": None},
            "scores": {"relative_error": 0.5, "ridge": 1e-4},
        },
        "stages": {
            "joint": {"seconds": 1.5, "images_per_s": 10.0},
            "extract": {"seconds": 12.25, "images_per_s": 3.0},
        },
        "ray": {"nodes": 1, "cpus": 2, "gpus": 0},
        "placements": [{"teacher": "low", "node": "n", "gpus": [0], "device": "cuda:0", "pid": 7}],
        "unreadable": ["broken.png (truncated)"],
        "mlflow": {"tracking_uri": "sqlite:////tmp/my runs/mlflow.db", "run_id": "abc"},
    }


def markdown(**changes: Any) -> str:
    return Report.model_validate(content() | changes).to_markdown()


def required(name: str) -> set[str]:
    part = REPORT_SCHEMA if name == "Report" else REPORT_SCHEMA["$defs"][name]
    assert part["additionalProperties"] is False
    return set(part["required"])


def test_the_schema_requires_every_key() -> None:
    assert required("Report") == {
        *("name", "classes", "method", "rule", "centered", "overlap", "accuracy", "curve", "size"),
        *(
            "kept_adapters",
            "codes",
            "extension",
            "layers",
            "stages",
            "ray",
            "placements",
            "unreadable",
            "mlflow",
        ),
    }
    assert required("Accuracy") == {
        *("union", "ensemble", "ensemble_over_views", "agreement"),
        *("per_teacher", "images", "labelled"),
    }
    assert required("CurvePoint") == {"images", "accuracy"}
    assert required("Extension") == {"extended", "reused", "trained", "seconds", "saved_seconds"}
    assert required("Pair") == {"teacher", "student"}
    assert required("Sizes") == {"student", "teachers", "per_teacher"}
    assert required("Size") == {"parameters", "macs", "bytes"}
    assert required("Code") == {"width", "stacked", "relative_error", "optimal_relative_error"}
    assert required("Layer") == {"relative_error", "ridge"}
    assert required("Speed") == {"seconds", "images_per_s"}
    assert required("Cluster") == {"nodes", "cpus", "gpus"}
    assert required("Placement") == {"teacher", "node", "gpus", "device", "pid"}
    assert required("MlflowRun") == {"tracking_uri", "run_id"}


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"classes": None},
        {"stages": {"sleep": {"seconds": 1, "images_per_s": 1}}},
        {"method": "magic"},
        {"rule": None},
    ],
)
def test_what_does_not_fit_the_schema_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Report.model_validate(content() | change)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_saved_report_is_loaded_unchanged(tmp_path: Path, labelled: bool) -> None:
    extension = {"extended": "/old", "reused": 1, "trained": 1, "seconds": 1.5, "saved_seconds": 2.5}
    curve = [{"images": 64, "accuracy": judged(labelled, union=0.5, views=True)}]
    more = {"curve": curve, "extension": extension, "kept_adapters": {"a": 3}, "overlap": {"x": ["l", "h"]}}
    report = Report.model_validate(content(labelled) | more)
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert json.loads((tmp_path / "report.json").read_text()) == report.model_dump(mode="json")
    assert (tmp_path / "report.md").read_text() == report.to_markdown()


def test_markdown_tells_all_that_a_reader_asks_for() -> None:
    text = markdown()
    assert text.startswith("# run: 4 classes, 2 teachers, one student\n\nMade by `direct`; ")
    assert "the teachers' scores are put together by `concatenate`." in text
    assert NO_LABELS not in text
    assert "| all classes (teachers: their ensemble) | 1.000 | 1.000 |" in text
    assert "| conv1 | 4 of 8 | 0.25 | 0.2 | 0.125 | gradient steps |" in text
    assert "| scores | - | - | - | 0.5 | least squares, ridge 0.0001 |" in text
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
    assert r"| a\|b | 4 of 8 |" in markdown(codes={"a|b": content()["codes"]["conv1"]})


def test_what_a_run_has_not_is_not_spoken_of() -> None:
    text = markdown()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# run: 4 classes, 2 teachers, one student",
        *("## Accuracy", "## Size", "## Codes and layers", "## Stages", "## Teacher actors"),
        *("## Skipped: 1 unreadable images", "## Tracking"),
    ]
    for word in ("Extends", "several teachers know", "averaged over views", "keeps adapters"):
        assert word not in text
    assert "\n\n\n" not in text
    assert "## Teacher actors" not in markdown(placements=[])
    assert "unreadable" not in markdown(unreadable=[])
    assert "Not tracked." in markdown(mlflow={"tracking_uri": None, "run_id": None})


def test_classes_that_several_teachers_know_are_named_with_them_and_the_rule() -> None:
    overlap = {"dog": ["low", "high"], "cow": ["high", "other"]}
    text = markdown(rule="mean", overlap=overlap)
    assert "put together by `mean`.\n\nClasses that several teachers know: " in text
    assert "know: dog (low, high), cow (high, other)." in text


def test_centred_scores_are_named() -> None:
    assert "put together by `mean`, each teacher's centred before." in markdown(rule="mean", centered=True)


@pytest.mark.parametrize(
    ("reused", "trained", "saved", "said"),
    [
        (
            *(3, 1, 34.56),
            "3 auto-encoder(s) a tap used again, 1 trained in 12.3 s; 34.6 s of training saved.",
        ),
        (
            *(0, 1, 0.0),
            "0 auto-encoder(s) a tap used again, 1 trained in 12.3 s; "
            "all auto-encoders were trained again, nothing was saved.",
        ),
    ],
)
def test_an_extension_says_what_it_saved_or_that_it_saved_nothing(
    reused: int, trained: int, saved: float, said: str
) -> None:
    extension = {"extended": "/runs/old", "reused": reused, "trained": trained, "seconds": 12.345}
    text = markdown(method="incremental", extension=extension | {"saved_seconds": saved})
    assert f"Extends `/runs/old`: {said}" in text


def test_the_curve_sets_every_epochs_student_against_the_ensemble() -> None:
    accuracy = judged() | {"union": 0.6, "ensemble": 0.8}
    curve = [
        {"images": 1000, "accuracy": judged(union=0.25) | {"ensemble": 0.5}},
        {"images": 25_000, "accuracy": judged(union=0.75)},
    ]
    text = markdown(accuracy=accuracy, curve=curve)
    assert (
        "## After every epoch\n\n| images of joint learning | union | union / ensemble | agreement |" in text
    )
    assert "| 1,000 | 0.250 | 0.312 | 0.250 |" in text  # of the run's own ensemble, 0.8
    assert "| 25,000 | 0.750 | 0.938 | 0.750 |" in text
    assert text.index("| 1,000 |") < text.index("| 25,000 |") < text.index("## Size")


def test_a_curve_without_labels_tells_agreement_alone() -> None:
    curve = [{"images": 64, "accuracy": judged(labelled=False, union=0.5)}]
    assert "| 64 | not measured | - | 0.500 |" in markdown(accuracy=judged(labelled=False), curve=curve)


def test_the_ensemble_over_views_has_a_line_of_its_own() -> None:
    text = markdown(accuracy=judged(views=True))
    assert "| all classes (teachers: their ensemble) | 1.000 | 1.000 |" in text
    assert "| all classes (teachers: averaged over views) | 0.750 |  |" in text


def test_adapters_that_stay_are_counted_below_the_sizes() -> None:
    text = markdown(kept_adapters={"layer1": 4160, "layer4": 262_656})
    said = "could not be folded, at (parameters): layer1 (4,160), layer4 (262,656)."
    assert text.index("## Size") < text.index(said) < text.index("## Codes and layers")


@pytest.mark.parametrize("method", ["distill", "scratch"])
def test_a_baseline_has_no_codes(method: str) -> None:
    text = markdown(method=method, codes={}, layers={})
    assert f"Made by `{method}`" in text
    assert "Codes" not in text
    assert "\n\n\n" not in text


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
