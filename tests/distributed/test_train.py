"""Training under Ray Train has the weights of a plain loop, with any number of workers."""

import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.train
import torch
from safetensors.torch import load_file, save_file

from ka_ray.amalgamation import METHODS
from ka_ray.config import RayConfig, Resources
from ka_ray.distributed.epoch_reports import POINTER
from ka_ray.distributed.train import ReportForwarder, WorkerGroup, train_in_workers
from ka_ray.errors import ClusterError, InputError
from ka_ray.features.store import FEATURES, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.numerics.ranks import rank, wait_for_all
from ka_ray.stages import run_stages
from ka_ray.stages.inputs import StageInputs, stage_summary_path
from ka_ray.storage.files import read_json
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.training.fit import Progress

pytestmark = pytest.mark.ray

BATCH, STEPS, POSITIONS = 8, 3, 8
"""Half a batch has 32 positions, the size of the groups in which ``common_features`` computes the MMD."""

TOLERANCE = 2e-5
"""Largest difference of any weight after three steps of every stage (weights are of order 0.1 to 1)."""


VARIANTS = {method: (f"codes.method={method}",) for method in METHODS} | {
    "exact": (
        *("codes.method=incremental", "codes.solver=exact", "codes.basis=channels"),
        *("layers.solver=least_squares", "layers.inputs=student", "layers.positions_per_image=5"),
    ),
    "exact from codes": ("codes.solver=exact", "layers.solver=least_squares"),
}


@pytest.fixture
def make_inputs(load_config, config_tree, randomised, tmp_path):
    """Return a function that makes a run with random features of three teachers and three steps per stage."""
    save_file(randomised(plain_conv_net(3, (4, 6))).state_dict(), tmp_path / "third.safetensors")
    # Two of these classes belong to the other teachers, too.
    third = {"name": "third", "classes": ["digit_1", "digit_8", "cat"]}
    third["checkpoint"] = str(tmp_path / "third.safetensors")
    config_tree["teachers"].append(config_tree["teachers"][0] | third)
    rng, images = np.random.default_rng(0), BATCH * STEPS

    def make(name: str, variant: str = "direct", *more: str) -> StageInputs:
        config = load_config(
            f"codes={{solver: sgd, epochs: 1, batch_size: {BATCH}, positions_per_image: {POSITIONS}}}",
            f"layers={{epochs: 1, batch_size: {BATCH}}}",
            *VARIANTS[variant],
            f"joint={{epochs: 1, batch_size: {BATCH}, augment: {{flip: true, shift: 1}}}}",
            *more,
        )
        plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
        if not features:
            shapes = plan.shapes.items()
            features.update({tap: rng.normal(size=(images, *s)).astype(np.float16) for tap, s in shapes})
        folder = tmp_path / name / variant
        create_shard_folder(folder / FEATURES)
        columns = {"image_id": np.arange(images), "image": pixels, "scores": scores, **features}
        write_shard(folder / FEATURES, columns)
        mark_folder_finished(folder / FEATURES, {})
        return StageInputs(config, plan, folder, folder, torch.device("cpu"), lambda _: None)

    features: dict[str, np.ndarray] = {}
    pixels = rng.integers(0, 256, (images, 3, 8, 8), dtype=np.uint8)
    scores = rng.normal(size=(images, 13)).astype(np.float16)
    return make


def run_on_ray(runs: list[StageInputs], workers: int) -> list[Progress]:
    """Run the stages of several runs, one after the other in one group of workers."""
    run_parts = [(inputs.config, inputs.plan, inputs.folder) for inputs in runs]
    reports: list[Progress] = []

    def train_loop_per_worker(device, report):
        for config, plan, folder in run_parts:
            run_stages(StageInputs(config, plan, folder, folder, device, report))

    ray_config = RayConfig(workers=workers)
    group = WorkerGroup(ray_config, Resources(cpu=0.5), runs[0].folder, "run")
    train_in_workers(train_loop_per_worker, group, reports.append, print)
    return reports


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{stage}.{name}": tensor
        for stage in ("codes", "layers", "joint")
        for name, tensor in load_file(stage_summary_path(folder, stage).with_suffix(".safetensors")).items()
    }


@pytest.mark.parametrize("workers", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 3])
def test_any_number_of_workers_and_the_plain_loop_give_the_same_weights(cluster, make_inputs, workers):
    # With three workers the parts of a batch are too small for the groups of ``common_features``.
    variants = [variant for variant in VARIANTS if workers < 3 or variant != "common_features"]
    expected, ended_epochs = {}, []
    for variant in variants:
        plain = make_inputs("plain", variant)
        run_stages(plain)
        expected[variant] = load_weights(plain.folder)
        links = 2 if variant == "incremental" else 1  # three teachers
        ended_epochs += [("codes", BATCH * STEPS * link) for link in range(1, links + 1)]
        if variant == "exact":  # the layers are solved one after another
            ended_epochs += [("layers", BATCH), ("layers", BATCH * 2)]
        ended_epochs += [("layers", BATCH * STEPS), ("joint", BATCH * STEPS)]
    runs = {variant: make_inputs(f"workers{workers}", variant) for variant in variants}
    reports = run_on_ray(list(runs.values()), workers)
    assert [(r.stage, r.images) for r in reports if r.epoch_ended] == ended_epochs
    for variant, inputs in runs.items():
        assert_close_weights(load_weights(inputs.folder), expected[variant], variant)
    assert_ray_train_has_the_last_epoch(next(iter(runs.values())).folder, reports[-1])


def assert_ray_train_has_the_last_epoch(output: Path, last: Progress) -> None:
    result = ray.train.Result.from_path(str(output / "ray" / "run-1"))
    found = {name: result.metrics[name] for name in ("stage", "epoch", "epochs", "images", "loss")}
    assert found == {name: getattr(last, name, last.losses.get(name)) for name in found}
    assert result.metrics["images_per_s"] > 0
    with result.checkpoint.as_directory() as folder:
        assert read_json(Path(folder) / POINTER) == {"output_folder": str(output)}


def assert_close_weights(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], variant: str
) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= TOLERANCE, (variant, name)


@pytest.mark.slow  # two groups of workers; `make chaos` kills workers of whole runs
def test_a_killed_worker_is_replaced_and_the_weights_stay_the_same(cluster, make_inputs, tmp_path):
    """Rank 0 is killed in the second epoch of joint learning; the next group repeats only this epoch."""
    more = ("codes.epochs=1", "layers.epochs=1", "joint.epochs=3")
    plain, interrupted = make_inputs("plain", "direct", *more), make_inputs("killed", "direct", *more)
    run_stages(plain)
    run_parts, killed_marker = (
        (interrupted.config, interrupted.plan, interrupted.folder),
        tmp_path / "was_killed",
    )

    def train_loop_per_worker(device, report):
        def die_once(progress):
            if (
                (progress.stage, progress.epoch) == ("joint", 2)
                and rank() == 0
                and not killed_marker.exists()
            ):
                killed_marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            report(progress)

        config, plan, folder = run_parts
        run_stages(StageInputs(config, plan, folder, folder, device, die_once))

    reports, messages = list[Progress](), list[str]()
    elastic = RayConfig(workers={"min": 1, "max": 2}, timeout_s=60)
    group = WorkerGroup(elastic, Resources(cpu=0.5), interrupted.folder, "run")
    train_in_workers(train_loop_per_worker, group, reports.append, messages.append)
    assert killed_marker.exists()
    assert [line for line in messages if "workers were lost, starting others" in line] == messages[1:2]
    assert messages[::2] == ["a group of 2 workers has begun"] * 2
    epochs = [(r.stage, r.epoch) for r in reports if r.epoch_ended]
    assert epochs == [("codes", 1), ("layers", 1), ("joint", 1), ("joint", 2), ("joint", 3)]
    assert_close_weights(load_weights(interrupted.folder), load_weights(plain.folder), "killed")
    assert {path.name for path in (interrupted.folder / "ray").iterdir()} == {"run-1", "run-2"}
    assert list(interrupted.folder.glob("stages/*.epoch")) == []


@pytest.mark.slow  # four groups of workers
def test_a_worker_that_never_joins_a_collective_fails_the_stage_after_the_timeout(cluster, tmp_path):
    def sleep_on_rank_1(device, report):
        if rank() == 1:
            time.sleep(3600)
        wait_for_all()

    group = WorkerGroup(RayConfig(timeout_s=3, max_failures=1), Resources(cpu=0.5), tmp_path, "run")
    with pytest.raises(ClusterError, match=r"waited for each other longer than ray.timeout_s = 3"):
        train_in_workers(sleep_on_rank_1, group, print, print)


@pytest.mark.slow  # one more group of workers; other tests cover `unwrap`
def test_the_input_error_of_a_worker_is_raised_unchanged(cluster, tmp_path):
    def refuse(device, report):
        raise InputError("batch_size 9 is larger than the 3 images there are")

    with pytest.raises(InputError, match="batch_size 9 is larger than the 3 images there are"):
        train_in_workers(
            refuse, WorkerGroup(RayConfig(workers=1), Resources(), tmp_path, "run"), print, print
        )


def test_an_error_in_a_report_is_kept_until_all_reports_are_forwarded(cluster):
    def report(progress):
        seen.append(progress.epoch)
        raise ConnectionError(f"epoch {progress.epoch}")

    fields = {"stage": "joint", "epochs": 2, "step": 1, "steps": 1, "images": 8, "seconds": 1.0, "losses": {}}
    seen, errors = [], []
    ended_epochs = set()
    forwarder = ReportForwarder(report, print, ended_epochs, errors)
    with forwarder:
        ray.get([forwarder.queue.add.remote({"epoch": epoch, **fields}) for epoch in (1, 2)])
    assert seen == [1, 2]
    assert ended_epochs == {("joint", 1), ("joint", 2)}
    assert str(errors[0]) == "epoch 1"


def test_the_config_and_the_plan_for_the_workers_can_be_pickled(make_inputs):
    inputs = make_inputs("pickled")
    config, plan = pickle.loads(pickle.dumps((inputs.config, inputs.plan)))
    assert config == inputs.config
    assert plan.spec == inputs.plan.spec
