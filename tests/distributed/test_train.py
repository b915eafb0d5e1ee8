"""Training under Ray Train against the plain loop: the same weights, however many workers."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from ka_ray.config import RayConfig
from ka_ray.distributed.train import _follow, train_in_workers
from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES, finish_folder, start_folder, write_shard
from ka_ray.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.training.fit import Progress
from ka_ray.training.stages import STAGES, StageInputs, run_stages, stage_file

pytestmark = pytest.mark.ray

BATCH, STEPS = 8, 3
TOLERANCE = 2e-5
"""Largest difference of any weight after three steps of every stage (weights are of order 0.1 to 1)."""


@pytest.fixture
def inputs_for(load_config, tmp_path):
    """A small run whose every stage takes exactly three steps, with random features."""
    config = load_config(
        f"codes={{epochs: 1, batch_size: {BATCH}, positions_per_image: 4}}",
        f"layers={{epochs: 1, batch_size: {BATCH}}}",
        f"joint={{epochs: 1, batch_size: {BATCH}, augment: {{flip: true, shift: 1}}}}",
    )
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    rng, images = np.random.default_rng(0), BATCH * STEPS

    def make(name: str) -> StageInputs:
        folder = tmp_path / name
        start_folder(folder / FEATURES)
        columns = {"image_id": np.arange(images), "image": pixels, "scores": scores, **features}
        write_shard(folder / FEATURES, columns)
        finish_folder(folder / FEATURES, {})
        return StageInputs(config, plan, folder, torch.device("cpu"), lambda _: None)

    pixels = rng.integers(0, 256, (images, 3, 8, 8), dtype=np.uint8)
    scores = rng.normal(size=(images, 10)).astype(np.float16)
    features = {tap: rng.normal(size=(images, *s)).astype(np.float16) for tap, s in plan.shapes.items()}
    return make


def run_on_ray(inputs: StageInputs, workers: int) -> list[Progress]:
    config, plan, folder = inputs.config, inputs.plan, inputs.folder
    reports: list[Progress] = []
    train_in_workers(
        lambda device, report: run_stages(StageInputs(config, plan, folder, device, report)),
        RayConfig(workers=workers, cpus_per_worker=0.5),
        folder / "ray",
        reports.append,
    )
    return reports


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{stage}.{name}": tensor
        for stage in STAGES
        for name, tensor in load_file(stage_file(folder, stage).with_suffix(".safetensors")).items()
    }


def test_one_worker_two_workers_and_the_plain_loop_give_the_same_weights(cluster, inputs_for):
    plain = inputs_for("plain")
    run_stages(plain)
    expected = weights(plain.folder)
    for workers in (1, 2):
        inputs = inputs_for(f"workers{workers}")
        reports = run_on_ray(inputs, workers)
        assert [(r.stage, r.images) for r in reports if r.epoch_ended] == [(s, BATCH * STEPS) for s in STAGES]
        found = weights(inputs.folder)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name] - tensor).abs().max() <= TOLERANCE, (workers, name)


@pytest.mark.slow  # one more group of workers; what it checks besides `unwrap` is Ray's own wrapping
def test_a_workers_error_reaches_the_user_as_it_was_meant(cluster, tmp_path):
    def refuse(device, report):
        raise InputError("batch_size 9 is larger than the 3 images there are")

    with pytest.raises(InputError, match="batch_size 9 is larger than the 3 images there are"):
        train_in_workers(refuse, RayConfig(workers=1), tmp_path, lambda _: None)


def test_a_report_that_fails_lets_the_work_finish_and_is_raised_then(cluster):
    class Taken:
        def __init__(self, entries):
            self.take = self
            self.entries = entries

        def remote(self):
            return ray.put(self.entries)

    def report(progress):
        seen.append(progress.epoch)
        raise ConnectionError(f"epoch {progress.epoch}")

    fields = {"stage": "joint", "epochs": 2, "step": 1, "steps": 1, "images": 8, "seconds": 1.0, "losses": {}}
    seen, errors, ended = [], [], threading.Event()
    ended.set()
    _follow(Taken([{"epoch": 1, **fields}, {"epoch": 2, **fields}]), report, ended, errors)
    assert seen == [1, 2]
    assert str(errors[0]) == "epoch 1"


def test_what_travels_to_the_workers_can_be_pickled(inputs_for):
    inputs = inputs_for("pickled")
    config, plan = pickle.loads(pickle.dumps((inputs.config, inputs.plan)))
    assert config == inputs.config
    assert plan.spec == inputs.plan.spec
