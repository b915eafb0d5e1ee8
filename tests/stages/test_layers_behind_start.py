"""Test codes and layers behind a start: codes in the student's basis, and layers that are put back."""

import json

import numpy as np
import pytest
import torch

from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.stages import list_stages, run_stages
from ka_ray.stages.codes_learner import build_amalgamations
from ka_ray.stages.inputs import load_stage, stage_summary_path
from ka_ray.stages.layers_behind_start import express_codes
from ka_ray.stages.start import start_student_folder
from ka_ray.student import Student, load_student
from ka_ray.training.batches import hold_out_rows

BEHIND = ("student.start={teacher: low}", "student.head=ridge", "layers.behind_start=true", "joint.epochs=0")


def run(make_inputs, *overrides):
    inputs = make_inputs(*BEHIND, "codes.solver=exact", *overrides)
    run_stages(inputs)
    return inputs, json.loads(stage_summary_path(inputs.folder, "layers").read_text())["taps"]


def test_the_stages_follow_one_another(make_inputs):
    assert list_stages(make_inputs(*BEHIND).config) == ("start", "codes", "layers", "joint")
    assert list_stages(make_inputs(BEHIND[0]).config) == ("start", "joint")


def test_the_codes_are_the_regression_of_the_students_features_on_them(make_inputs):
    inputs, _ = run(make_inputs)
    plan = inputs.plan
    encoders = build_amalgamations("direct", plan.channels, plan.spec.widths)
    load_stage(inputs.folder, "codes", encoders)
    student = load_student(start_student_folder(inputs.folder))
    store, taps = inputs.store(FEATURES), list(encoders)
    batches = inputs.batches("layers", store, ["image", *taps], num_draws=2)
    expressed = express_codes(student, encoders, batches, positions_per_image=10**6)
    columns = store.gather(["image", *taps], np.arange(len(store)))
    with torch.no_grad():
        own = student.preprocess(torch.from_numpy(columns["image"]))
        for tap in taps:
            own = student.stages[tap](own)
            stacked = torch.from_numpy(columns[tap]).float()
            code, found = encoders[tap].encode(stacked), expressed[tap].encode(stacked)
            rows = [t.movedim(1, -1).flatten(0, -2).double().numpy() for t in (code, own, found)]
            with_ones = np.c_[rows[0], np.ones(len(rows[0]))]
            best = with_ones @ np.linalg.lstsq(with_ones, rows[1], rcond=None)[0]
            # The ridge is small, so the fit is nearly as good as that of ordinary least squares.
            least = np.square(best - rows[1]).sum()
            assert np.square(rows[2] - rows[1]).sum() <= 1.01 * least + 1e-6
            assert least < np.square(rows[0] - rows[1]).sum()


@pytest.mark.parametrize("solver", ["sgd", "least_squares"])
def test_no_layer_ends_worse_than_it_began(make_inputs, solver):
    _, taps = run(make_inputs, f"layers.solver={solver}")
    assert all(layer["error_before"] is not None for layer in taps.values())
    assert all(layer["relative_error"] <= layer["error_before"] for layer in taps.values())
    assert not all(layer["put_back"] for layer in taps.values())


def test_layers_that_only_get_worse_leave_the_start_as_it_was(make_inputs):
    inputs, taps = run(make_inputs, "layers.learning_rate=30")
    assert all(layer["put_back"] for layer in taps.values())
    start = load_student(start_student_folder(inputs.folder))
    student = Student(inputs.plan.spec).eval()
    load_stage(inputs.folder, "layers", student)
    rows, _ = hold_out_rows(len(inputs.store(FEATURES)), 0)
    pixels = torch.from_numpy(inputs.store(FEATURES).gather(["image"], rows[:32])["image"])
    with torch.no_grad():
        torch.testing.assert_close(student(pixels), start(pixels), rtol=1e-4, atol=1e-4)


def test_codes_do_not_see_the_images_that_judge_the_student(make_inputs):
    inputs = make_inputs(
        *BEHIND, "codes.solver=exact", "codes.basis=principal", "codes.positions_per_image=10000"
    )
    run_stages(inputs)
    found = json.loads(stage_summary_path(inputs.folder, "codes").read_text())
    store = inputs.store(FEATURES)
    learned, held_out = hold_out_rows(len(inputs.store(FEATURES, IMAGES)), inputs.config.seed)
    assert len(held_out) > 0
    for tap, errors in found["taps"].items():
        stacked = store.gather([tap], learned[learned < len(store)])[tap].astype(np.float64)
        variances = np.linalg.eigvalsh(np.cov(np.moveaxis(stacked, 1, 0).reshape(stacked.shape[1], -1)))
        lost = variances[: -errors["width"]].sum() / variances.sum()
        assert errors["optimal_relative_error"] == pytest.approx(lost, rel=1e-4)
