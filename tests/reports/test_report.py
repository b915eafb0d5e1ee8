"""Test the report of a run: its JSON schema, its Markdown, and the sizes of networks in it."""

import html
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ka_ray.metrics import compute_accuracies, count_batch
from ka_ray.reports.markdown import NO_LABELS_NOTE
from ka_ray.reports.network_size import measure_size, measure_speed
from ka_ray.reports.networks import SPEED_BATCH
from ka_ray.reports.report import REPORT_SCHEMA, Report

SIZE = {"parameters": 1000, "macs": 2_500_000, "bytes": 4096}


def make_accuracies(labelled: bool = True, union: float = 1.0, views: bool = False) -> dict[str, Any]:
    """Return the accuracies on four images, one per class.

    Args:
        labelled: Whether the images have labels.
        union: Share of the images on which the student is right.
        views: Whether scores averaged over views were measured, too.
    """
    scores = np.eye(4)
    student_scores = np.roll(scores, 1, axis=1)  # wrong classes, except for the first images
    student_scores[: round(4 * union)] = scores[: round(4 * union)]
    targets = np.arange(4) if labelled else np.full(4, -1)
    columns = [[0, 1], [2, 3]]
    averaged = np.eye(4)[[0, 1, 2, 0]] if views else None
    counts = count_batch(targets, student_scores, scores, [scores[:, c] for c in columns], columns, averaged)
    return compute_accuracies(counts, ["low", "high"])


def make_content(labelled: bool = True) -> dict[str, Any]:
    return {
        "name": "run",
        "classes": ["cat", "dog", "cow", "a|b"],
        "method": "direct",
        "rule": "concatenate",
        "centered": False,
        "overlap": {},
        "accuracy": make_accuracies(labelled),
        "start": None,
        "choice": None,
        "warnings": [],
        "curve": [],
        "size": {"student": SIZE, "teachers": SIZE, "per_teacher": {"low": SIZE, "high": SIZE}},
        "kept_adapters": {},
        "codes": {"conv1": {"width": 4, "stacked": 8, "relative_error": 0.25, "optimal_relative_error": 0.2}},
        "extension": None,
        "layers": {
            "conv1": {"relative_error": 0.125, "ridge": None, "error_before": 0.5, "put_back": False},
            "scores": {"relative_error": 0.5, "ridge": 1e-4, "error_before": None, "put_back": False},
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


def make_markdown(**changes: Any) -> str:
    return Report.model_validate(make_content() | changes).to_markdown()


def required_keys(name: str) -> set[str]:
    part = REPORT_SCHEMA if name == "Report" else REPORT_SCHEMA["$defs"][name]
    assert part["additionalProperties"] is False
    return set(part["required"])


def test_the_schema_requires_every_key() -> None:
    assert required_keys("Report") == {
        *("name", "classes", "method", "rule", "centered", "overlap", "accuracy", "start", "curve"),
        *("choice", "warnings"),
        "size",
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
    assert required_keys("Accuracy") == {
        *("union", "ensemble", "ensemble_over_views", "agreement", "constant_agreement"),
        *("per_teacher", "images", "labelled"),
    }
    assert required_keys("CurvePoint") == {"images", "accuracy"}
    assert required_keys("Extension") == {"extended", "reused", "trained", "seconds", "saved_seconds"}
    assert required_keys("AccuracyPair") == {"teacher", "student"}
    assert required_keys("NetworkSizes") == {"student", "teachers", "per_teacher"}
    assert required_keys("NetworkSize") == {"parameters", "macs", "bytes"}
    assert required_keys("CodeQuality") == {"width", "stacked", "relative_error", "optimal_relative_error"}
    assert required_keys("LayerQuality") == {"relative_error", "ridge", "error_before", "put_back"}
    assert required_keys("StageSpeed") == {"seconds", "images_per_s"}
    assert required_keys("ClusterResources") == {"nodes", "cpus", "gpus"}
    assert required_keys("ActorPlacement") == {"teacher", "node", "gpus", "device", "pid"}
    assert required_keys("MlflowRun") == {"tracking_uri", "run_id"}


def test_every_key_of_the_schema_has_a_description() -> None:
    parts = [REPORT_SCHEMA, *REPORT_SCHEMA["$defs"].values()]
    described = {
        f"{part['title']}.{key}": bool(field.get("description"))
        for part in parts
        for key, field in part["properties"].items()
    }
    assert len(described) == 133
    assert [key for key, has_description in described.items() if not has_description] == []


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
def test_content_outside_the_schema_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Report.model_validate(make_content() | change)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_saved_report_is_loaded_unchanged(tmp_path: Path, labelled: bool) -> None:
    extension = {"extended": "/old", "reused": 1, "trained": 1, "seconds": 1.5, "saved_seconds": 2.5}
    curve = [{"images": 64, "accuracy": make_accuracies(labelled, union=0.5, views=True)}]
    optional = {
        "curve": curve,
        "extension": extension,
        "kept_adapters": {"a": 3},
        "overlap": {"x": ["l", "h"]},
    }
    report = Report.model_validate(make_content(labelled) | optional)
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert json.loads((tmp_path / "report.json").read_text()) == report.model_dump(mode="json")
    assert (tmp_path / "report.md").read_text() == report.to_markdown()


def test_markdown_has_every_section_of_a_labelled_run() -> None:
    text = make_markdown()
    assert text.startswith("# run: 4 classes, 2 teachers, one student\n\n**The student is as good as ")
    assert "(0.0 points).**\n\nMethod: `direct`. " in text
    assert "The teachers' scores are combined by `concatenate`." in text
    assert NO_LABELS_NOTE not in text
    assert "| all classes (teachers: their ensemble) | 1.000 | 1.000 |" in text
    assert "| conv1 | 4 of 8 | 0.25 | 0.2 | 0.125 (start: 0.5) | gradient steps |" in text
    assert "| scores | - | - | - | 0.5 | least squares, ridge 0.0001 |" in text
    assert "| scores | - | - | - | 0.5 |" in text
    assert text.index("| extract | 12.2 | 3 |") < text.index("| joint | 1.5 | 10 |")
    assert "broken.png" in text
    assert "ka-ray browse '/tmp/my runs'" in text


def test_markdown_without_labels_has_a_note_and_reports_agreement() -> None:
    text = Report.model_validate(make_content(labelled=False)).to_markdown()
    assert NO_LABELS_NOTE in text
    assert "Agreement of student and ensemble on 4 images: 1.000 (" in text
    assert "all classes" not in text


def test_a_vertical_bar_in_a_name_is_escaped_in_tables() -> None:
    assert r"| a\|b | 4 of 8 |" in make_markdown(codes={"a|b": make_content()["codes"]["conv1"]})


def test_markdown_leaves_out_sections_without_content() -> None:
    text = make_markdown()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# run: 4 classes, 2 teachers, one student",
        *("## Accuracy", "## Size", "## Codes and layers", "## Time", "## Teacher actors"),
        *("## Skipped images: 1 could not be read", "## Tracking"),
    ]
    for word in ("extends", "several teachers know", "averaged over views", "Adapters", "joint learning"):
        assert word not in text
    assert "\n\n\n" not in text
    assert "## Teacher actors" not in make_markdown(placements=[])
    assert "Skipped" not in make_markdown(unreadable=[])
    assert "This run was not tracked." in make_markdown(mlflow={"tracking_uri": None, "run_id": None})


def test_the_time_section_has_the_steps_of_the_command_and_the_work_of_the_stages() -> None:
    steps = [
        {"step": "starting Ray", "began": 2.0, "seconds": 3.5},
        {"step": "learning gates", "began": 5.5, "seconds": 0.04},
        {"step": "evaluating", "began": 6.0, "seconds": 1.0},
    ]
    work = {"decode images": 0.75, "load low": 0.02, "run low": 1.5}
    speeds = {
        "start": {"seconds": 2.0, "images_per_s": 0.0},
        "evaluate": {"seconds": 1.0, "images_per_s": 4.0, "work": work},
    }
    text = make_markdown(timeline=steps, stages=speeds)
    assert "| starting Ray | 2.0 | 3.5 |\n| evaluating | 6.0 | 1.0 |" in text  # none for a step of no time
    assert "The steps took 4.5 of the 7.0 s until this report was written." in text
    assert "| start | 2.0 | - | - |" in text  # it reads no stream of images
    assert "| evaluate | 1.0 | 4 | run low 1.5, decode images 0.8 |" in text  # what took most, first
    assert "The steps took" not in make_markdown(timeline=[])


def test_shared_classes_are_listed_with_their_teachers() -> None:
    overlap = {"dog": ["low", "high"], "cow": ["high", "other"]}
    text = make_markdown(rule="mean", overlap=overlap)
    assert "combined by `mean`.\n\nClasses that several teachers know: " in text
    assert "know: dog (low, high), cow (high, other)." in text


def test_markdown_says_that_scores_were_centred() -> None:
    text = make_markdown(rule="mean", centered=True)
    assert "combined by `mean`, after each teacher's scores were centred." in text


@pytest.mark.parametrize(
    ("reused", "trained", "saved", "sentence"),
    [
        (
            *(3, 1, 34.56),
            "Per tap it reused 3 auto-encoder(s) and trained 1 in 12.3 s. This saved 34.6 s of training.",
        ),
        (
            *(0, 1, 0.0),
            "Per tap it reused 0 auto-encoder(s) and trained 1 in 12.3 s. "
            "All auto-encoders were trained again, so no time was saved.",
        ),
    ],
)
def test_markdown_says_how_much_time_an_extension_saved(
    reused: int, trained: int, saved: float, sentence: str
) -> None:
    extension = {"extended": "/runs/old", "reused": reused, "trained": trained, "seconds": 12.345}
    text = make_markdown(method="incremental", extension=extension | {"saved_seconds": saved})
    assert f"This run extends `/runs/old`. {sentence}" in text


def test_the_curve_compares_the_student_of_every_epoch_with_the_ensemble_of_the_finished_run() -> None:
    accuracy = make_accuracies() | {"union": 0.6, "ensemble": 0.8}
    curve = [
        {"images": 1000, "accuracy": make_accuracies(union=0.25) | {"ensemble": 0.5}},
        {"images": 25_000, "accuracy": make_accuracies(union=0.75)},
    ]
    text = make_markdown(accuracy=accuracy, curve=curve)
    header = "| images processed | accuracy, all classes | accuracy / ensemble's accuracy | agreement |"
    assert f"## After every epoch of joint learning\n\n{header}" in text
    assert "| 1,000 | 0.250 | 0.312 | 0.250 |" in text  # 0.25 / 0.8, the ensemble of the finished run
    assert "| 25,000 | 0.750 | 0.938 | 0.750 |" in text
    assert text.index("| 1,000 |") < text.index("| 25,000 |") < text.index("## Size")


def test_the_student_before_any_step_is_compared_with_the_finished_one() -> None:
    accuracy = make_accuracies(union=0.5)
    start = {
        "source": "teacher low",
        "random": ["fc.weight"],
        "accuracy": accuracy,
        "candidates": [
            {"name": name, "worst_divergence": worst, "agreement": agreement, "divergence": total}
            | {"images": 500, "seconds": seconds}
            for name, worst, agreement, total, seconds in (
                ("average", 2.0, 0.25, 1.5, 3.0),
                ("teacher low", 1.0, 0.5, 2.5, 1.0),
            )
        ],
        "skipped": {"exact": "the networks differ"},
    }
    text = make_markdown(method="start", start=start)
    assert "| average | 2.000 | 0.250 | 1.500 | 3.0 |\n| teacher low | 1.000 | 0.500 | 2.500 | 1.0 |" in text
    assert "Judged without labels, on 500 held-out training images" in text
    assert "- exact does not apply: the networks differ" in text
    assert "The student started from: teacher low. Random at its start were: fc.weight." in text
    assert "| before any step | 0.500 | 0.500 |" in text
    assert "| finished | 1.000 | 1.000 |" in text
    assert "## Start" not in make_markdown()


def test_the_student_that_is_kept_is_listed_with_the_others() -> None:
    qualities = {
        "start": {"agreement": 0.75, "divergence": 0.5, "worst_divergence": 0.125, "images": 40},
        "epoch 1": {"agreement": 0.5, "divergence": 0.25, "worst_divergence": 0.5, "images": 40},
    }
    text = make_markdown(choice={"best": "start", "qualities": qualities})
    assert "Kept is the student of: start. On 40 held-out images it is 0.500 nats from the ensemble." in text
    assert "| epoch 1 | 0.500 | 0.500 | 0.250 |" in text
    assert "## Which student is kept" not in make_markdown()


def test_disputed_images_are_listed_without_pictures() -> None:
    image = {"student": "cat", "student_probability": 0.875, "ensemble": "c|w", "ensemble_probability": 0.75}
    text = make_markdown(disputed=[image | {"label": "dog", "picture": "/9j/"}])
    assert "| cat (88%) | c\\|w (75%) | dog |" in text
    assert "/9j/" not in text
    assert "Student and ensemble predict different classes for" in text


def test_a_warning_is_the_first_line() -> None:
    text = make_markdown(warnings=["The student has learned nothing.", "The loss did not fall."])
    assert text.startswith("> **Warning:** The student has learned nothing.\n> **Warning:** The loss")
    assert make_markdown().startswith("# run: 4 classes")


def test_the_curve_without_labels_has_only_agreement() -> None:
    curve = [{"images": 64, "accuracy": make_accuracies(labelled=False, union=0.5)}]
    assert "| 64 | not measured | - | 0.500 |" in make_markdown(
        accuracy=make_accuracies(labelled=False), curve=curve
    )


def test_the_ensemble_over_views_has_its_own_row() -> None:
    text = make_markdown(accuracy=make_accuracies(views=True))
    assert "| all classes (teachers: their ensemble) | 1.000 | 1.000 |" in text
    assert "| all classes (teachers: their ensemble, averaged over views) | 0.750 | - |" in text


def test_kept_adapters_are_listed_below_the_sizes() -> None:
    text = make_markdown(kept_adapters={"layer1": 4160, "layer4": 262_656})
    sentence = (
        "Adapters that could not be folded are kept as layers of the student: "
        "layer1 (4,160 parameters), layer4 (262,656 parameters)."
    )
    assert text.index("## Size") < text.index(sentence) < text.index("## Codes and layers")


@pytest.mark.parametrize("method", ["distill", "scratch"])
def test_a_baseline_has_no_codes(method: str) -> None:
    text = make_markdown(method=method, codes={}, layers={})
    assert f"Method: `{method}`." in text
    assert "Codes" not in text
    assert "\n\n\n" not in text


def test_measure_size_equals_sizes_computed_by_hand() -> None:
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
    batch_norm_buffers = 4 * 2 * 5 + 8  # bytes of the running mean and variance, and of the step count
    assert size.bytes == 4 * size.parameters + batch_norm_buffers
    assert measure_size(network.half(), torch.zeros(1, 3, 8, 6).half()).bytes < size.bytes


def test_speed_is_that_of_single_images_and_of_batches() -> None:
    sizes = list[int]()

    def score(pixels: torch.Tensor) -> None:
        sizes.append(len(pixels))
        time.sleep(0.02 if len(pixels) == 1 else 0.05)

    speed = measure_speed(score, torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    assert set(sizes) == {1, SPEED_BATCH}
    assert speed.latency_ms >= 20  # a sleep may be longer, never shorter
    assert speed.images_per_s <= SPEED_BATCH / 0.05


def test_a_slow_network_is_timed_once_on_a_batch_that_takes_a_few_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, clock = list[int](), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def score(pixels: torch.Tensor) -> None:
        calls.append(len(pixels))
        clock[0] += 0.5 * len(pixels)

    speed = measure_speed(score, torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    assert calls == [1, 6]
    assert (speed.latency_ms, speed.images_per_s) == (500, 2)


def test_measure_size_counts_attention_that_torch_computes_in_one_operation() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens, width = 5, 8
    attention = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width
    macs = measure_size(layer, torch.zeros(1, tokens, width)).macs
    assert macs == attention + 2 * tokens * width * 16
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "name", ["<script>x()</script>", "[x](javascript:x())", "![x](http://evil)", "**x** _y_ $z$", "a|b`c`"]
)
def test_names_of_classes_files_and_taps_are_no_markup(name: str) -> None:
    from markdown_it import MarkdownIt

    content = make_content()
    page = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(
            make_markdown(
                overlap={name: ["low", "high"]},
                warnings=[f"the class {name} was never predicted"],
                kept_adapters={name: 3},
                unreadable=[name, f"- {name}.png (truncated)"],
                codes={name: content["codes"]["conv1"]},
            )
        )
    )
    assert not re.search(r"<(script|img|a|em)\b", page)
    shown = html.unescape(re.sub(r"</?code>", "", page)).replace("a|bc", "a|b`c`")
    assert shown.count(name) >= 5
