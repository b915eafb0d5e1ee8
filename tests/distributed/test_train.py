"""Training under Ray Train against the plain loop: the same weights, however many workers."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from ka_ray.amalgamation import METHODS
from ka_ray.config import RayConfig
from ka_ray.distributed.train import _follow, train_in_workers
from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES, finish_folder, start_folder, write_shard
from ka_ray.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.training.fit import Progress
from ka_ray.training.inputs import StageInputs, stage_file
from ka_ray.training.stages import STAGES, run_stages

pytestmark = pytest.mark.ray

BATCH, STEPS, POSITIONS = 8, 3, 8
"""Half a batch has 32 positions: as many as ``common_features`` compares with one another."""

TOLERANCE = 2e-5
"""Largest difference of any weight after three steps of every stage (weights are of order 0.1 to 1)."""


WAYS = {method: (f"codes.method={method}",) for method in METHODS} | {
    "solved": (
        *("codes.method=incremental", "codes.solver=exact", "codes.basis=channels"),
        *("layers.solver=least_squares", "layers.inputs=student", "layers.positions_per_image=5"),
    ),
    "solved from codes": ("codes.solver=exact", "layers.solver=least_squares"),
}


@pytest.fixture
def inputs_for(load_config, config_tree, randomised, tmp_path):
    """Make a small run whose every stage takes three steps a link, with random features of three teachers."""
    save_file(randomised(plain_conv_net(3, (4, 6))).state_dict(), tmp_path / "third.safetensors")
    third = {"name": "third", "classes": ["digit_1", "digit_8", "cat"]}  # two that others know, too
    third["checkpoint"] = str(tmp_path / "third.safetensors")
    config_tree["teachers"].append(config_tree["teachers"][0] | third)
    rng, images = np.random.default_rng(0), BATCH * STEPS

    def make(name: str, way: str = "direct") -> StageInputs:
        config = load_config(
            f"codes={{epochs: 1, batch_size: {BATCH}, positions_per_image: {POSITIONS}}}",
            f"layers={{epochs: 1, batch_size: {BATCH}}}",
            *WAYS[way],
            f"joint={{epochs: 1, batch_size: {BATCH}, augment: {{flip: true, shift: 1}}}}",
        )
        plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
        if not features:
            shapes = plan.shapes.items()
            features.update({tap: rng.normal(size=(images, *s)).astype(np.float16) for tap, s in shapes})
        folder = tmp_path / name / way
        start_folder(folder / FEATURES)
        columns = {"image_id": np.arange(images), "image": pixels, "scores": scores, **features}
        write_shard(folder / FEATURES, columns)
        finish_folder(folder / FEATURES, {})
        return StageInputs(config, plan, folder, folder, torch.device("cpu"), lambda _: None)

    features: dict[str, np.ndarray] = {}
    pixels = rng.integers(0, 256, (images, 3, 8, 8), dtype=np.uint8)
    scores = rng.normal(size=(images, 13)).astype(np.float16)
    return make


def run_on_ray(runs: list[StageInputs], workers: int) -> list[Progress]:
    """Run the stages of several runs, one after the other in one group of workers."""
    parts = [(inputs.config, inputs.plan, inputs.folder) for inputs in runs]
    reports: list[Progress] = []

    def in_worker(device, report):
        for config, plan, folder in parts:
            run_stages(StageInputs(config, plan, folder, folder, device, report))

    ray_config = RayConfig(workers=workers, cpus_per_worker=0.5)
    train_in_workers(in_worker, ray_config, runs[0].folder / "ray", reports.append)
    return reports


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{stage}.{name}": tensor
        for stage in STAGES
        for name, tensor in load_file(stage_file(folder, stage).with_suffix(".safetensors")).items()
    }


def test_one_worker_two_workers_and_the_plain_loop_give_the_same_weights(cluster, inputs_for):
    expected, ended = {}, []
    for way in WAYS:
        plain = inputs_for("plain", way)
        run_stages(plain)
        expected[way] = weights(plain.folder)
        links = 2 if way == "incremental" else 1  # three teachers
        ended += [("codes", BATCH * STEPS * link) for link in range(1, links + 1)]
        ended += [("layers", BATCH), ("layers", BATCH * 2)] if way == "solved" else []  # layer by layer
        ended += [("layers", BATCH * STEPS), ("joint", BATCH * STEPS)]
    for workers in (1, 2):
        runs = {way: inputs_for(f"workers{workers}", way) for way in WAYS}
        reports = run_on_ray(list(runs.values()), workers)
        assert [(r.stage, r.images) for r in reports if r.epoch_ended] == ended
        for way, inputs in runs.items():
            found = weights(inputs.folder)
            assert found.keys() == expected[way].keys()
            for name, tensor in expected[way].items():
                assert (found[name] - tensor).abs().max() <= TOLERANCE, (workers, way, name)


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
