"""Test what a report warns of: results that are bad without an error."""

import re
from typing import Any

import pytest

from ka_ray.reports.choices import StudentChoice
from ka_ray.reports.sections import Accuracy, CodeQuality, LayerQuality
from ka_ray.reports.warnings import list_warnings, warn_of_bad_students, warn_of_lost_start

GOOD: dict[str, Any] = {
    "union": 0.7,
    "ensemble": 0.72,
    "ensemble_over_views": None,
    "agreement": 0.8,
    "constant_agreement": 0.2,
    "per_teacher": {},
    "images": 100,
    "labelled": 100,
}


def warnings_of(
    codes: Any = None,
    layers: Any = None,
    losses: Any = None,
    starts_random: bool = True,
    **changes: Any,
) -> list[str]:
    accuracy = Accuracy.model_validate(GOOD | changes)
    qualities = {
        tap: LayerQuality(relative_error=error, ridge=None, error_before=None, put_back=False)
        for tap, error in (layers or {}).items()
    }
    code_qualities = {
        tap: CodeQuality(width=2, stacked=4, relative_error=error, optimal_relative_error=least)
        for tap, (error, least) in (codes or {}).items()
    }
    return list_warnings(accuracy, code_qualities, qualities, losses or {}, starts_random)


def test_a_good_run_has_no_warning() -> None:
    assert warnings_of({"conv1": (0.04, 0.01)}, {"conv1": 0.2}, {"joint": [2.0, 1.0]}) == []
    assert warnings_of(union=None, ensemble=None, labelled=0) == []
    assert warnings_of(agreement=None, constant_agreement=None, ensemble=None) == []
    assert warnings_of(agreement=1.0, constant_agreement=1.0) == []  # all images show one class


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agreement": 0.2}, "learned nothing: it agrees with its teachers on 0.200 .* would on 0.200"),
        ({"union": 0.187, "ensemble": 0.717}, "accuracy, 0.187, is far under .* 0.717. Start from the teach"),
        ({"union": None, "ensemble": None, "agreement": 0.4}, "agrees with its teachers on only 0.400"),
        ({"layers": {"conv1": 0.3, "conv2": 0.97}}, r"Layers that have learned nothing.*: conv2 \(0.97\)"),
        ({"codes": {"conv1": (0.5, 0.2), "conv2": (0.21, 0.2)}}, r"far from .*: conv1 \(0.50 of 0.20 possib"),
        ({"losses": {"joint": [1.0, 1.2]}}, "loss of joint did not fall: 1 .* 1.2 .* joint.learning_rate"),
        ({"union": 0.5, "starts_random": False}, "far under .* Give more images, or images like those"),
    ],
)
def test_a_bad_result_is_said_with_what_to_change(changes: dict[str, Any], message: str) -> None:
    found = warnings_of(**changes)
    assert len(found) == 1
    assert re.search(message, found[0]), found[0]


@pytest.mark.parametrize(
    ("best", "last", "warned"), [("start", 0.9, True), ("start", 0.52, False), ("epoch 1", 0.9, False)]
)
def test_joint_learning_that_lost_the_start_is_said(best, last, warned):
    divergences = {"start": 0.5, "epoch 1": 0.4 if best == "epoch 1" else 0.6, "epoch 2": last}
    qualities = {
        name: {"agreement": 0.5, "divergence": value, "worst_divergence": 0.5, "images": 40}
        for name, value in divergences.items()
    }
    choice = StudentChoice.model_validate({"best": best, "qualities": qualities})
    warnings = [*warn_of_lost_start(choice)]
    assert bool(warnings) is warned
    assert all("0.500 nats" in text and "0.900 after" in text for text in warnings)
    assert all(text.endswith("the last epoch. Lower joint.learning_rate.") for text in warnings)
    assert [*warn_of_lost_start(None)] == []


def test_after_lower_rates_the_advice_is_another_one():
    names = ["start", "epoch 1 at rate 0.001", "epoch 2 at rate 0.001", "epoch 1 at rate 0.0003", "epoch 1"]
    quality = {"agreement": 0.5, "divergence": 0.9, "worst_divergence": 0.5, "images": 40}
    qualities = dict.fromkeys(names, quality) | {"start": quality | {"divergence": 0.5}}
    choice = StudentChoice.model_validate({"best": "start", "qualities": qualities})
    [warning] = warn_of_lost_start(choice)
    assert "as at the rates 0.001 and 0.0003. Give more images, or a still lower joint" in warning


def test_a_comparison_names_the_methods_whose_students_are_bad() -> None:
    good, under, nothing = (
        Accuracy.model_validate(GOOD | changes) for changes in ({}, {"union": 0.187}, {"agreement": 0.2})
    )
    rows = {"start": [good, good], "random": [under, good], "scratch": [nothing, under]}
    assert [*warn_of_bad_students(rows)] == [
        "random: 1 of 2 students are far under their teachers' ensemble.",
        "scratch: 1 of 2 students agree with their teachers no more often than one that always gives the "
        "same answer.",
    ]


def test_a_choice_without_an_epoch_has_lost_nothing() -> None:
    quality = {"agreement": 1.0, "divergence": -1e-9, "worst_divergence": 0.0, "images": 10}
    choice = StudentChoice.model_validate({"best": "start", "qualities": {"start": quality}})
    assert [*warn_of_lost_start(choice)] == []
