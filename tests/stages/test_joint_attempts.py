"""Test that joint learning which loses what its start had begins again at a lower rate."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from ka_ray.stages import kept, run_stages
from ka_ray.stages.held_out import Quality
from ka_ray.stages.inputs import StageInputs, stage_summary_path
from ka_ray.stages.joint import JointLearner

START = "student.start={teacher: high}"


def summary_of(inputs):
    return json.loads(stage_summary_path(inputs.folder, "joint").read_text())


def weights_of(inputs):
    return load_file(stage_summary_path(inputs.folder, "joint").with_suffix(".safetensors"))


def losses_of(inputs):
    return [record["losses"]["loss"] for record in summary_of(inputs)["history"]]


@pytest.fixture
def use_rate(monkeypatch):
    """Return a function that sets the rate at which joint learning begins, as if it were the default."""

    def use(rate):
        original = StageInputs.settings

        def settings(self, stage):
            found = original(self, stage)
            is_free = "learning_rate" not in self.config.joint.model_fields_set
            return dataclasses.replace(found, learning_rate=rate) if stage == "joint" and is_free else found

        monkeypatch.setattr(StageInputs, "settings", settings)

    return use


def test_the_last_attempt_is_training_from_the_start_at_a_ninth_of_the_rate(make_inputs, use_rate):
    use_rate(27.0)
    lowered = make_inputs(START)
    run_stages(lowered)
    choice, losses, given_up = summary_of(lowered)["choice"], losses_of(lowered), 2
    names = ["start", "epoch 1 at rate 27", "epoch 1 at rate 9", "epoch 1", "epoch 2", "epoch 3"]
    assert list(choice["qualities"]) == names
    images = [record["images"] for record in summary_of(lowered)["history"]]
    assert images == [images[0] // (given_up + 1) * (given_up + epoch) for epoch in (1, 2, 3)]
    assert [record["attempt"] for record in summary_of(lowered)["history"]] == [3, 3, 3]
    for path in (lowered.folder / "stages").glob("joint*"):
        path.unlink()

    plain = make_inputs(START, "joint.learning_rate=3")
    run_stages(plain)
    assert losses_of(plain) == losses
    qualities = summary_of(plain)["choice"]["qualities"]
    assert list(qualities) == ["start", "epoch 1", "epoch 2", "epoch 3"]
    assert all(choice["qualities"][name] == quality for name, quality in qualities.items())


@pytest.mark.parametrize("overrides", [("joint.learning_rate=27",), ("joint.keep=last",)])
def test_a_rate_that_the_config_gives_stays_and_so_does_the_last_epoch(make_inputs, use_rate, overrides):
    use_rate(27.0)
    inputs = make_inputs(START, *overrides)
    run_stages(inputs)
    choice = summary_of(inputs)["choice"]
    assert choice is None or list(choice["qualities"]) == ["start", "epoch 1", "epoch 2", "epoch 3"]
    assert len(losses_of(inputs)) == 3


def test_a_rate_at_which_the_student_gets_closer_is_not_lowered(make_inputs, monkeypatch):
    divergences = iter([0.5, 0.4, 0.6, 0.7])  # the start, and three epochs
    monkeypatch.setattr(kept, "measure_quality", lambda *_: Quality(0.5, next(divergences), 1.0, 10))
    inputs = make_inputs(START)
    run_stages(inputs)
    choice = summary_of(inputs)["choice"]
    assert list(choice["qualities"]) == ["start", "epoch 1", "epoch 2", "epoch 3"]
    assert choice["best"] == "epoch 1"


def test_a_rate_at_which_no_epoch_gets_closer_is_lowered_after_the_last_one(make_inputs, monkeypatch):
    divergences = iter([0.5, *(0.6, 0.7, 0.6), *(0.6, 0.4, 0.7)])
    monkeypatch.setattr(kept, "measure_quality", lambda *_: Quality(0.5, next(divergences), 1.0, 10))
    inputs = make_inputs(START)
    run_stages(inputs)
    choice, history = summary_of(inputs)["choice"], summary_of(inputs)["history"]
    first = [f"epoch {epoch} at rate 0.001" for epoch in (1, 2, 3)]
    assert list(choice["qualities"]) == ["start", *first, "epoch 1", "epoch 2", "epoch 3"]
    assert choice["best"] == "epoch 2"
    assert [(record["epoch"], record["attempt"]) for record in history] == [(1, 2), (2, 2), (3, 2)]
    images = [record["images"] for record in history]
    assert images == [images[0] // 4 * epoch for epoch in (4, 5, 6)]  # with the three that were given up


@pytest.mark.parametrize(("divergence", "steps"), [(-1e-9, 0), (9e-6, 0), (2e-5, 3)])
def test_a_start_that_is_the_ensemble_is_kept_without_a_step(make_inputs, monkeypatch, divergence, steps):
    divergences = iter([divergence, 1e-7, 0.5, 0.5])
    monkeypatch.setattr(kept, "measure_quality", lambda *_: Quality(1.0, next(divergences), 1.0, 10))
    inputs = make_inputs(START)
    run_stages(inputs)
    choice, history = summary_of(inputs)["choice"], summary_of(inputs)["history"]
    assert len(history) == steps
    assert choice["best"] == ("epoch 1" if steps else "start")
    if not steps:
        start = load_file(stage_summary_path(inputs.folder, "start").with_suffix(".safetensors"))
        assert all(torch.equal(weights_of(inputs)[key], tensor) for key, tensor in start.items())


def test_a_rate_that_the_config_gives_is_used_behind_any_start(make_inputs, monkeypatch):
    monkeypatch.setattr(kept, "measure_quality", lambda *_: Quality(1.0, 0.0, 1.0, 10))
    inputs = make_inputs(START, "joint.learning_rate=0.001")
    run_stages(inputs)
    assert len(summary_of(inputs)["history"]) == 3


def test_a_loss_that_is_not_finite_is_an_attempt_that_lost_the_start(make_inputs, monkeypatch):
    steps, original = [0], JointLearner.forward

    def forward(self, batch):
        steps[0] += 1
        return {
            name: loss * (math.nan if steps[0] == 2 else 1.0) for name, loss in original(self, batch).items()
        }

    monkeypatch.setattr(JointLearner, "forward", forward)
    inputs = make_inputs(START)
    run_stages(inputs)
    choice = summary_of(inputs)["choice"]
    assert list(choice["qualities"])[-3:] == ["epoch 1", "epoch 2", "epoch 3"]
    assert all(math.isfinite(quality["divergence"]) for quality in choice["qualities"].values())
    assert all(torch.isfinite(value).all() for value in weights_of(inputs).values())

    steps[0] = 0
    for path in (inputs.folder / "stages").glob("joint*"):
        path.unlink()
    given = make_inputs(START, "joint.learning_rate=0.001")
    with pytest.raises(FloatingPointError, match=r"lower the learning_rate of joint"):
        run_stages(given)


def test_an_interrupted_attempt_goes_on_at_its_own_rate(make_inputs, use_rate):
    use_rate(27.0)
    inputs = make_inputs(START)
    run_stages(inputs)
    expected, choice, losses = weights_of(inputs), summary_of(inputs)["choice"], losses_of(inputs)
    for path in (inputs.folder / "stages").glob("joint*"):
        path.unlink()
    epochs = []

    def stop(progress):
        if progress.stage == "joint" and progress.epoch_ended:
            epochs.append(progress.epoch)
            if epochs == [1, 1, 1, 2]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(dataclasses.replace(inputs, report=stop))
    run_stages(inputs)
    assert (summary_of(inputs)["choice"], losses_of(inputs)) == (choice, losses)
    assert all(torch.equal(expected[key], value) for key, value in weights_of(inputs).items())
