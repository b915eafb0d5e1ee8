"""Test extending a run by a teacher: the auto-encoders of the extended run stay the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ka_ray.config import Config
from ka_ray.features.store import FEATURES
from ka_ray.numerics.moments import Moments
from ka_ray.stages import list_stages, run_stages
from ka_ray.stages.codes_learner import build_amalgamations
from ka_ray.stages.inputs import StageInputs, load_stage, stage_summary_path
from ka_ray.storage.files import write_json
from ka_ray.student import Student
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.training import Progress

NUM_IMAGES, BATCH, EPOCHS, CHANNELS = 48, 16, 2, {"conv1": 4, "conv2": 6}
ADDED_TEACHERS = {"third": ["digit_1", "digit_3"], "fourth": ["cat", "dog", "digit_9"]}
"""Classes of more teachers. Some are classes of the first two teachers, too."""
FEW_EPOCHS = (
    f"codes={{solver: sgd, method: incremental, epochs: {EPOCHS}, batch_size: {BATCH}}}",
    f"layers.batch_size={BATCH}",
    f"joint.batch_size={BATCH}",
)


@pytest.fixture
def make_config(load_config, config_tree, randomised, tmp_path) -> Callable[..., Config]:
    """Return a function that makes the config of a run with the first ones of four teachers."""
    teachers = [*config_tree["teachers"]]
    for name, classes in ADDED_TEACHERS.items():
        network = randomised(plain_conv_net(len(classes), list(CHANNELS.values())))
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
        checkpoint = str(tmp_path / f"{name}.safetensors")
        teachers.append({**teachers[0], "name": name, "classes": classes, "checkpoint": checkpoint})

    def make(num_teachers: int, *overrides: str) -> Config:
        config_tree["teachers"] = teachers[:num_teachers]
        return load_config(*FEW_EPOCHS, *overrides)

    return make


@pytest.fixture
def make_inputs(make_config, make_store, tmp_path):
    """Return a function that makes a run with random features, which are the same in all runs."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (NUM_IMAGES, 3, 8, 8), dtype=np.uint8)
    maps = {
        tap: rng.normal(size=(NUM_IMAGES, 4 * count, size, size)).astype(np.float16)
        for (tap, count), size in zip(CHANNELS.items(), (8, 4), strict=True)
    }
    scores = rng.normal(size=(NUM_IMAGES, 15)).astype(np.float16)

    def make(name: str, num_teachers: int, *overrides: str) -> StageInputs:
        config = make_config(num_teachers, *overrides)
        plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
        stacked = {tap: maps[tap][:, : num_teachers * count] for tap, count in CHANNELS.items()}
        own = scores[:, : plan.label_sets.num_scores]
        columns = {"image_id": np.arange(NUM_IMAGES), "image": pixels, "scores": own, **stacked}
        make_store(columns, folder=f"{name}/{FEATURES}")
        folder = tmp_path / name
        return StageInputs(config, plan, folder, folder, torch.device("cpu"), lambda progress: None)

    return make


def load_codes_summary(inputs: StageInputs) -> dict[str, Any]:
    return json.loads(stage_summary_path(inputs.folder, "codes").read_text())


def load_codes(folder: Path) -> dict[str, Tensor]:
    return load_file(stage_summary_path(folder, "codes").with_suffix(".safetensors"))


def run_codes_stage(inputs: StageInputs) -> list[Progress]:
    """Run only the stage `codes` and return its progress reports."""
    reports: list[Progress] = []
    for stage in ("layers", "joint"):
        stage_summary_path(inputs.folder, stage).parent.mkdir(exist_ok=True)
        write_json(stage_summary_path(inputs.folder, stage), {})
    run_stages(replace(inputs, report=reports.append))
    return reports


def load_amalgamations(inputs: StageInputs) -> torch.nn.ModuleDict:
    spec = inputs.plan.spec
    amalgamations = build_amalgamations(inputs.config.codes.method, inputs.plan.channels, spec.widths)
    load_stage(inputs.folder, "codes", amalgamations)
    return amalgamations


def load_features(inputs: StageInputs, tap: str) -> Tensor:
    store = inputs.store(FEATURES)
    return torch.from_numpy(store.gather([tap], np.arange(NUM_IMAGES))[tap]).float()


@pytest.fixture
def old_and_new_run(make_inputs) -> tuple[StageInputs, StageInputs, list[Progress]]:
    """Return a run of three teachers, a run of four that extends it, and the latter's progress reports.

    The seeds differ, so that a link that is trained again has other weights.
    """
    old = make_inputs("old", 3)
    run_codes_stage(old)
    new = make_inputs("new", 4, f"extend={old.folder}", "seed=1")
    return old, new, run_codes_stage(new)


def test_links_are_trained_in_order_and_share_one_history(make_inputs):
    inputs = make_inputs("run", 4)
    reports = run_codes_stage(inputs)
    history = load_codes_summary(inputs)["history"]
    num_links = 3
    links = load_codes_summary(inputs)["links"]
    assert (links["reused"], links["trained"], len(links["seconds"])) == (0, num_links, num_links)
    assert [record["epoch"] for record in history] == list(range(1, num_links * EPOCHS + 1))
    assert {record["epochs"] for record in history} == {num_links * EPOCHS}
    assert [record["images"] for record in history] == [
        NUM_IMAGES * e for e in range(1, num_links * EPOCHS + 1)
    ]
    seconds = [record["seconds"] for record in history]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    ended = [progress for progress in reports if progress.epoch_ended]
    assert [(p.epoch, p.images, p.seconds) for p in ended] == [
        (record["epoch"], record["images"], record["seconds"]) for record in history
    ]


def test_links_of_the_extended_run_are_kept_bit_for_bit(old_and_new_run, make_inputs):
    old, new, _ = old_and_new_run
    not_extending = make_inputs("not_extending", 4, "seed=1")
    run_codes_stage(not_extending)
    before, after = (
        {name: weight for name, weight in load_codes(run.folder).items() if ".links." in name}
        for run in (old, new)
    )
    assert len(before) == 2 * 2 * 4  # taps, links, weights and biases of encoder and decoder
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
        assert not torch.equal(load_codes(not_extending.folder)[name], tensor), name
    assert {name.split(".")[2] for name in after.keys() - before.keys()} == {"2"}


def test_only_the_new_link_is_trained(old_and_new_run):
    old, new, reports = old_and_new_run
    before, after = load_codes_summary(old)["links"], load_codes_summary(new)["links"]
    assert (before["reused"], before["trained"]) == (0, 2)
    assert (after["reused"], after["trained"]) == (2, 1)
    assert after["seconds"][:2] == before["seconds"]
    assert len(after["seconds"]) == 3
    assert [record["epoch"] for record in load_codes_summary(new)["history"]] == list(range(1, EPOCHS + 1))
    assert [(p.epoch, p.epochs) for p in reports if p.epoch_ended] == [(1, EPOCHS), (2, EPOCHS)]
    torch.manual_seed(new.config.seed)
    untrained = build_amalgamations("incremental", new.plan.channels, new.plan.spec.widths).state_dict()
    after = load_codes(new.folder)
    assert not any(torch.equal(after[name], untrained[name]) for name in after)


@torch.no_grad()
def test_an_extension_keeps_the_codes_of_the_teachers_of_the_extended_run(old_and_new_run):
    old, new, _ = old_and_new_run
    for tap, width in new.plan.spec.widths.items():
        before = (
            load_amalgamations(old)[tap].encode(load_features(old, tap)) * load_amalgamations(old)[tap].scale
        )
        joined = load_amalgamations(new)[tap].link_input(
            load_features(new, tap).movedim(1, -1).flatten(0, -2), 2
        )
        after = joined[:, :width].unflatten(0, (NUM_IMAGES, *before.shape[2:])).movedim(-1, 1)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
        fourth = load_features(new, tap)[:, -CHANNELS[tap] :].movedim(1, -1).flatten(0, -2)
        assert torch.equal(joined[:, width:], fourth)


@torch.no_grad()
def test_the_error_of_an_extended_chain_covers_all_four_teachers(old_and_new_run):
    _, new, _ = old_and_new_run
    for tap, errors in load_codes_summary(new)["taps"].items():
        stacked = load_features(new, tap)
        rebuilt = load_amalgamations(new)[tap](stacked)
        variance = (stacked - stacked.mean(dim=(0, 2, 3), keepdim=True)).square().sum()
        error = float((rebuilt - stacked).square().sum() / variance)
        assert errors["relative_error"] == pytest.approx(error, rel=1e-4)
        moments = Moments.of(stacked)
        assert errors["optimal_relative_error"] == pytest.approx(
            moments.optimal_relative_error(errors["width"]), rel=1e-6
        )


def test_a_student_is_trained_from_the_extended_codes(make_inputs):
    old = make_inputs("old", 3)
    run_codes_stage(old)
    new = make_inputs("new", 4, f"extend={old.folder}")
    run_stages(new)
    assert {path.stem for path in (new.folder / "stages").glob("*.json")} == {*list_stages(new.config)}
    assert load_codes_summary(new)["links"]["reused"] == 2
    student = Student(new.plan.spec)
    load_stage(new.folder, "joint", student)
    assert student.eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 12)
    assert student.spec.classes[-2:] == ("cat", "dog")


def test_other_methods_train_all_their_auto_encoders_again(make_inputs):
    old = make_inputs("old", 3, "codes.method=direct")
    run_codes_stage(old)
    new = make_inputs("new", 4, "codes.method=direct", f"extend={old.folder}")
    run_codes_stage(new)
    links = load_codes_summary(new)["links"]
    assert (links["reused"], links["trained"], len(links["seconds"])) == (0, 1, 1)
