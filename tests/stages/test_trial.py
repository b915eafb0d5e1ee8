"""Test a trial of `ka-ray tune`: the solved student, its joint learning, and its agreement."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES, IMAGES, Store
from ka_ray.runs.search_space import trial_key
from ka_ray.runs.trials import DATA, HELD_OUT, TrialContext, run_point
from ka_ray.stages import STAGES
from ka_ray.stages.inputs import load_stage, save_stage
from ka_ray.stages.trial import TrialStudent, run_trial
from ka_ray.stages.trial_solvers import LayersSolver, MomentsSolver
from ka_ray.student import Student, load_student
from ka_ray.student.from_moments import LayerMoments, LayerMomentsMeter, build_full_width_student
from ka_ray.training.batches import Batches

CLOSED_FORM = ("codes.solver=exact", "codes.basis=channels", "layers.solver=least_squares")
WIDTHS = {"conv1": 3, "conv2": 7}


@pytest.fixture
def inputs(make_inputs):
    return make_inputs(*CLOSED_FORM)


@pytest.fixture
def layer_moments(inputs) -> LayerMoments:
    stacked = {tap: shape[0] for tap, shape in inputs.plan.shapes.items()}
    meter = LayerMomentsMeter(inputs.plan.spec, stacked, 64)
    for batch in Batches(
        inputs.store(FEATURES), ["image", SCORES, *stacked], 64, 0, num_draws=2
    ).single_pass():
        meter.add(batch)
    return LayerMoments(build_full_width_student(inputs.plan.spec, stacked).spec, meter.total)


def compute_agreement(student: Student, folder) -> float:
    store = Store(folder)
    rows = store.gather(["image", SCORES], np.arange(len(store)))
    with torch.inference_mode():
        predicted = student(torch.from_numpy(rows["image"])).argmax(dim=1).numpy()
    return float((predicted == rows[SCORES].argmax(axis=1)).mean())


@pytest.mark.parametrize("ridge", [None, 1e-2])
def test_without_joint_learning_the_student_is_solved_from_moments(inputs, layer_moments, tmp_path, ridge):
    reports, held_out = [], inputs.data / FEATURES
    trial = TrialStudent(WIDTHS, ridge, None, tmp_path / "trial")
    run_trial(trial, MomentsSolver(layer_moments), inputs, held_out, reports.append)
    expected, solutions = layer_moments.compute_student(WIDTHS, *([] if ridge is None else [(ridge,)]))
    found = load_student(tmp_path / "trial")
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)
    assert ridge is None or {solution.ridge for solution in solutions.values()} == {ridge}
    (report,) = reports
    assert (report["epochs"], report["agreement"]) == (0, compute_agreement(expected, held_out))


def test_joint_learning_of_a_trial_equals_that_of_a_run(inputs, layer_moments, tmp_path):
    reports, held_out = [], inputs.data / FEATURES
    folder = tmp_path / "trial"
    trial = TrialStudent(WIDTHS, None, 0.004, folder)
    run_trial(trial, MomentsSolver(layer_moments), inputs, held_out, reports.append)
    assert [report["epochs"] for report in reports] == [1, 2, 3]
    assert reports[-1]["agreement"] == compute_agreement(load_student(folder), held_out)

    start, _ = layer_moments.compute_student(WIDTHS)
    joint = inputs.config.joint.model_copy(update={"learning_rate": 0.004})
    run = replace(
        inputs,
        config=inputs.config.model_copy(update={"joint": joint}),
        plan=replace(inputs.plan, spec=start.spec),
        folder=tmp_path / "run",
    )
    save_stage(run.folder, "layers", start, {})
    torch.manual_seed(run.config.seed)
    module, _ = STAGES["joint"](run)
    save_stage(run.folder, "joint", module, {})
    expected = Student(start.spec)
    load_stage(run.folder, "joint", expected)
    torch.testing.assert_close(load_student(folder).state_dict(), expected.state_dict(), atol=0, rtol=0)
    shutil.rmtree(folder)


def test_a_student_of_given_layer_widths_is_solved_as_the_start_exact_does(make_inputs, tmp_path):
    inputs, reports = make_inputs("student.start=exact", "student.widths=1.0"), []
    widths = {"conv1": 8, "conv2": 12}  # as wide as both teachers together
    solver = LayersSolver(inputs.plan.spec)
    assert solver.build_spec(widths).layer_widths == widths
    trial = TrialStudent(widths, None, None, tmp_path / "trial")
    run_trial(trial, solver, inputs, inputs.data / FEATURES, reports.append)
    student = load_student(tmp_path / "trial")
    assert student.stages["scores"].conv1.weight.shape[0] == 8
    assert reports[0]["agreement"] == compute_agreement(student, inputs.data / FEATURES)
    assert reports[0]["agreement"] > 0.99


def test_a_trial_over_layers_reads_what_the_search_has_stored(make_inputs, tmp_path):
    inputs, reports = make_inputs("student.start=exact", "student.widths=1.0"), []
    for name in (f"{DATA}/{IMAGES}", HELD_OUT):
        shutil.copytree(inputs.data / FEATURES, tmp_path / name)
    context = TrialContext(inputs.config, inputs.plan, tmp_path, LayersSolver(inputs.plan.spec))
    point = {"width.conv1": 3, "width.conv2": 5}
    run_point(point, torch.device("cpu"), reports.append, context)
    student = load_student(tmp_path / "trials" / trial_key(point))
    assert student.spec.layer_widths == {"conv1": 3, "conv2": 5}
    assert reports[-1]["parameters"] == sum(p.numel() for p in student.parameters())
