"""Test that a run stores features as float32 where float16 would lose them, and counts their size."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ka_ray.distributed import teachers as teachers_module
from ka_ray.distributed.shard_writer import ShardWriter
from ka_ray.distributed.teachers import TeacherActor
from ka_ray.features.store import Store, create_shard_folder, mark_folder_finished
from ka_ray.images.split import read_sample, split_images
from ka_ray.runs import steps
from ka_ray.runs.precision import choose_precision, count_float32_bytes
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.reading import ReadSpec


@pytest.fixture
def make_run(load_config, tmp_path):
    """Return a function that makes a run; features of the teacher `high` at the tap `late` are shifted."""

    def make(shift: float) -> SimpleNamespace:
        config, path = (
            load_config("images.limit=40", "taps={early: norm1, late: norm2}"),
            tmp_path / "high.safetensors",
        )
        weights = load_file(path)
        weights["norm2.bias"] += shift
        save_file(weights, path)
        plan, notes = make_plan(config, [load_teacher(teacher) for teacher in config.teachers]), list[str]()
        return SimpleNamespace(
            config=config,
            plan=plan,
            folder=tmp_path / "out",
            training_images=split_images(config)[0].with_views(plan.views.columns),
            notify=lambda *texts: notes.extend(filter(None, texts)),
            notes=notes,
        )

    return make


def read_spec(run) -> ReadSpec:
    return ReadSpec(run.plan.paths, run.plan.spaces, run.config.scores, run.plan.views.read_columns)


def test_usual_features_are_stored_as_float16(make_run):
    run = make_run(0)
    chosen = choose_precision(run, read_spec(run))
    assert (chosen.float32, run.notes) == (frozenset(), [])
    assert count_float32_bytes(run.plan, chosen) == 0


def test_a_tap_with_a_large_mean_is_stored_as_float32_and_the_user_is_told(make_run, monkeypatch, tmp_path):
    run = make_run(3000)
    chosen = choose_precision(run, read_spec(run))
    assert "late" in chosen.float32
    assert "early" not in chosen.float32
    assert any(note.startswith("late of high: stored as float32, which takes twice") for note in run.notes)

    monkeypatch.setattr(teachers_module, "actor_device", lambda share: torch.device("cpu"))
    monkeypatch.setattr(teachers_module, "describe_actor", lambda *_: None)
    monkeypatch.setattr(
        teachers_module, "StartCount", lambda *_: SimpleNamespace(exhausted=False, check=lambda: None)
    )
    monkeypatch.setattr(
        "ka_ray.distributed.shard_writer.StartCount", lambda *_: SimpleNamespace(check=lambda: None)
    )
    ignored = SimpleNamespace(remote=lambda *_: None)
    monitor = SimpleNamespace(record_placement=ignored, record_work=ignored)
    batch = read_sample(run.training_images)
    for section in run.config.teachers:
        batch = TeacherActor(section, None, chosen, "none", monitor)(batch)
    create_shard_folder(run.folder)
    names = [section.name for section in run.config.teachers]
    write = ShardWriter(run.folder, list(chosen.spaces), names, monitor, float32=chosen.float32)
    written = int(write(dict(batch))["bytes"][0])
    half = ShardWriter(tmp_path, list(chosen.spaces), names, monitor)(dict(batch))
    count = len(batch["image_id"])
    # The estimate of the size on disk: Arrow's own bytes cancel out, but for padding to multiples of 64.
    assert written - int(half["bytes"][0]) == pytest.approx(
        count * count_float32_bytes(run.plan, chosen), abs=256
    )
    mark_folder_finished(run.folder, {})

    stored = Store(run.folder).gather(["late", "early"], np.arange(count))
    assert (stored["late"].dtype, stored["early"].dtype) == (np.float32, np.float16)
    pixels = torch.from_numpy(batch["image"])[np.argsort(batch["image_id"])]
    with torch.inference_mode():
        exact = [
            load_teacher(one).features(pixels, run.plan.paths[one.name])[0] for one in run.config.teachers
        ]
    late = torch.cat([features["late"] for features in exact], dim=1)
    np.testing.assert_allclose(stored["late"], late.numpy(), rtol=1e-6, atol=1e-6)


def test_the_room_on_disk_counts_float32(make_run, monkeypatch):
    run, needed = make_run(3000), []
    monkeypatch.setattr(steps, "check_disk", lambda folder, num_bytes, begun: needed.append(num_bytes))
    monkeypatch.setattr(steps, "store_images", lambda *_: None)
    monkeypatch.setattr(steps, "find_embeddings", lambda *_: {})
    config = run.config.model_copy(
        update={"student": run.config.student.model_copy(update={"start": "random"})}
    )
    steps.extract(run, [config])
    images = len(run.training_images.ids)
    plan = run.plan
    values = {tap: math.prod(shape) for tap, shape in plan.shapes.items()} | {"scores": 10}
    float32 = choose_precision(run, read_spec(run)).float32
    expected = 3 * 8 * 8 + sum((4 if name in float32 else 2) * size for name, size in values.items())
    assert needed == [images * expected]
