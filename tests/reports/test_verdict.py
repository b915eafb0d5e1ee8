"""Test the verdict on a run: what it claims, its number, and that every form of a report says the same."""

import re
from pathlib import Path
from typing import Any

import pytest
from report_kinds import KINDS, make_report

from ka_ray.reports.report import Report
from ka_ray.reports.sections import Accuracy
from ka_ray.reports.verdict import Grade, judge
from ka_ray.terminal.summary import show_report

MEASURED: dict[str, Any] = {
    "union": 0.9,
    "ensemble": 0.9,
    "ensemble_over_views": None,
    "agreement": 0.95,
    "constant_agreement": 0.2,
    "per_teacher": {},
    "images": 10_000,
    "labelled": 10_000,
}
GATE = {"changed": 0.1, "owner_accuracy": 0.9, "ungated_owner_accuracy": 0.8, "oracle": 0.95}


def accuracy_of(**changes: Any) -> Accuracy:
    return Accuracy.model_validate(MEASURED | changes)


@pytest.mark.parametrize(
    ("changes", "grade", "number", "claim"),
    [
        ({}, "equal", "0.0", "The student is as good as the ensemble of its teachers: 90.0 % of 10,000 im"),
        # At most 5 % of 10,000 images differ: the standard error is at most sqrt(.05 / 10000) = .0022.
        ({"union": 0.904}, "equal", "+0.4", "as good as the ensemble of its teachers, within chance: 90.4 %"),
        ({"union": 0.905}, "better", "+0.5", "is better than the ensemble of its teachers: 90.5 %"),
        ({"union": 0.895}, "worse", "-0.5", "against 90.0 % (-0.5 points)"),
        # Without the agreement on these images: sqrt(2 * .9 * .1 / 10000) = .0042.
        ({"union": 0.907, "images": 20_000}, "equal", "+0.7", "within chance"),
        ({"union": 0.909, "images": 20_000}, "better", "+0.9", "better"),
        ({"images": 100, "labelled": 100}, "equal", "0.0", "as good as"),  # 2 * sqrt(.05 / 100) = .045
        ({"images": 80, "labelled": 80}, "unmeasured", "0.0", "Too few images to tell whether the student"),
        ({"images": 80, "labelled": 80, "union": 0.97}, "better", "+7.0", "better"),
        ({"union": 0.5}, "bad", "-40.0", "is far worse than the ensemble"),
        ({"agreement": 0.2}, "bad", "0.0", "has learned nothing from its teachers"),
        ({"gate": GATE | {"ensemble": 0.95}}, "worse", "-5.0", "the ensemble of its teachers with the gate"),
        ({"gate": GATE | {"ensemble": None}}, "equal", "0.0", "as good as"),
        ({"ensemble": None, "agreement": None}, "unmeasured", "90.0 %", "no teachers were compared"),
    ],
)
def test_with_labels_the_student_is_compared_with_the_ensemble(
    changes: dict[str, Any], grade: Grade, number: str, claim: str
) -> None:
    verdict = judge(accuracy_of(**changes))
    assert (verdict.grade, verdict.number) == (grade, number)
    assert claim in verdict.sentence


@pytest.mark.parametrize(
    ("agreement", "grade", "number", "claim"),
    [
        (0.934, "unmeasured", "93.4 %", "only agreement tells"),
        (0.4, "bad", "40.0 %", "seldom agrees"),
        (0.2, "bad", "20.0 %", "has learned nothing"),
        (None, "unmeasured", "", "was not measured"),
    ],
)
def test_without_labels_the_agreement_is_the_number(
    agreement: float | None, grade: Grade, number: str, claim: str
) -> None:
    unlabelled = {"union": None, "ensemble": None, "labelled": 0, "agreement": agreement}
    verdict = judge(accuracy_of(**unlabelled))
    assert (verdict.grade, verdict.number) == (grade, number)
    assert claim in verdict.sentence
    assert number in verdict.sentence


def test_a_reader_who_subtracts_the_accuracies_finds_the_number() -> None:
    sentence = judge(accuracy_of(union=0.93872, ensemble=0.94429, images=359, labelled=359)).sentence
    student, ensemble, points = (float(number) for number in re.findall(r"-?\d+\.\d", sentence))
    assert round(student - ensemble, 1) == points


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_report_says_the_same(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report: Report = make_report(kind)
    sentence = judge(report.accuracy).sentence
    show_report(report, tmp_path)
    shown = capsys.readouterr().out.replace("\n         ", " ")  # long lines are wrapped
    assert f"verdict: {sentence}\n" in shown
    assert f"\n\n**{sentence}**\n\n" in report.to_markdown()
    assert f'<p class="sentence">{sentence}</p>' in report.to_html()
    assert f"<strong>{sentence}</strong>" in report._repr_html_()
