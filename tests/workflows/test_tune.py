"""Test the config that a search writes for a run, and the notes before training; neither needs Ray."""

import pytest
import yaml

from ka_ray.config import Config
from ka_ray.reports.tune import Trial
from ka_ray.runs.steps import StudentJob, solver_notes
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.workflows.tune import build_run_config

TRIAL = Trial(
    key="k",
    widths={"conv1": 3, "conv2": 5},
    ridge=0.01,
    learning_rate=0.002,
    agreement=0.5,
    parameters=1,
    macs=1,
    seconds=1.0,
    epochs=1,
)


def test_the_run_config_has_the_settings_of_the_trial(load_config, tmp_path):
    config = load_config("codes.method=common_features", "tune.trials=3", "joint.epochs=4")
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(build_run_config(config, TRIAL)))
    best = Config.load(tmp_path / "best.yaml")
    assert (best.codes.method, best.codes.solver, best.codes.basis) == ("direct", "exact", "channels")
    assert best.codes.widths == TRIAL.widths
    assert (best.layers.solver, best.layers.ridge) == ("least_squares", 0.01)
    assert (best.joint.learning_rate, best.joint.epochs) == (0.002, 4)
    assert best.output_dir != config.output_dir


def test_settings_that_were_not_searched_stay_as_configured(load_config, tmp_path):
    config = load_config("layers={solver: least_squares, inputs: student, ridge: 0.5}")
    without_rates = TRIAL.model_copy(update={"ridge": None, "learning_rate": None})
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(build_run_config(config, without_rates)))
    best = Config.load(tmp_path / "best.yaml")
    assert (best.layers.inputs, best.layers.ridge) == ("student", 0.5)
    assert best.joint == config.joint


@pytest.mark.parametrize(("taps", "has_note"), [("null", False), ("{conv2: norm2}", True)])
def test_a_note_says_why_channels_are_not_chosen_for_the_next_layer(load_config, tmp_path, taps, has_note):
    config = load_config(f"taps={taps}", "codes={solver: exact, basis: channels}")
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    notes = " ".join(note for note in solver_notes(StudentJob("", config, plan, tmp_path)) if note)
    assert ("name every layer of the student; 2 layers lead to conv2" in notes) == has_note


def test_the_run_config_of_a_submitted_search_has_checkpoints_relative_to_the_folder_of_the_job(
    load_config, tmp_path
):
    config = load_config()
    path_in_job = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1f/low.safetensors"
    teachers = (config.teachers[0].model_copy(update={"checkpoint": path_in_job}), config.teachers[1])
    run_config = build_run_config(config.model_copy(update={"teachers": teachers}), TRIAL)
    checkpoints = [teacher["checkpoint"] for teacher in run_config["teachers"]]
    assert checkpoints == ["low.safetensors", str(tmp_path / "high.safetensors")]
