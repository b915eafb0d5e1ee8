"""Eight teachers on one and on two CPUs: the chosen resources fit, no pass hangs, the results are right."""

import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from passes_on_one_cpu import POSITIONS, SEED
from safetensors.torch import save_file

from ka_ray.config import Config
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.resource_plan import plan_resources
from ka_ray.distributed.resources import pools_of
from ka_ray.features.stack import SCORES
from ka_ray.features.store import Store
from ka_ray.images import read_chunk
from ka_ray.images.split import split_images
from ka_ray.metrics import Counts, count_batch
from ka_ray.numerics.hashed_random import draw_uniform
from ka_ray.numerics.ridge import NUM_SOLVER_DRAWS
from ka_ray.student import Student, save_student
from ka_ray.student.from_moments import LayerMomentsMeter
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.teachers.reading import ReadSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WIDTHS = (4, 6)
TIMEOUT_S = 400
"""Maximum seconds of a pass, so that a hanging one fails; on two idle cores it takes half a minute."""


@pytest.fixture
def load_eight_teachers(config_tree, load_config, randomised, tmp_path):
    """Return a function that loads the config of a run with eight teachers of two classes each."""
    teachers = []
    for i in range(8):
        checkpoint = tmp_path / f"teacher_{i}.safetensors"
        save_file(randomised(plain_conv_net(2, WIDTHS)).state_dict(), checkpoint)
        own = {"name": f"t{i}", "classes": [f"digit_{i}", f"digit_{i + 2}"], "checkpoint": str(checkpoint)}
        teachers.append(config_tree["teachers"][0] | own)
    config_tree["teachers"] = teachers
    return lambda *more: load_config(
        "images.limit=60", "extract.batch_size=16", f"output={tmp_path / 'out'}", *more
    )


def read_by_plain_loop(config: Config, plan: Plan) -> dict[str, Any]:
    """Read without Ray: ``image``, ``image_id``, ``label``, stacked taps, and ``own`` scores per teacher."""
    images, _ = split_images(config)
    blocks = [
        block
        for chunk in images.source.chunks
        for block in read_chunk(images.config, images.source.read, chunk, images.ids, None, pytest.fail)
    ]
    found: dict[str, Any] = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    pixels = torch.tensor(found["image"])
    read = [t.features(pixels, plan.paths[t.name]) for t in map(load_teacher, config.teachers)]
    stacked = {tap: torch.cat([features[tap] for features, _ in read], dim=1) for tap in plan.shapes}
    return found | stacked | {"own": [scores for _, scores in read]}


def test_eight_teachers_extract_on_two_cpus(cluster, load_eight_teachers, tmp_path):
    config = load_eight_teachers()
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    resources, (images, _) = plan_resources(config, cluster), split_images(config)
    assert resources.notes[0] == "placement chosen to fit: teachers 0.21 CPU; decoding 0.105 CPU"
    work = Extraction(images, tmp_path / "features", 1000)
    read_spec = ReadSpec(plan.paths, plan.spaces, config.scores)
    extract_features(work, config.teachers, pools_of(config, resources.placement), read_spec, lambda _: None)
    assert_stored(tmp_path / "features", read_by_plain_loop(config, plan), plan)


def assert_stored(folder: Path, expected: dict[str, Any], plan: Plan) -> None:
    store = Store(folder)
    stored = store.gather(["image_id", "image", SCORES, *plan.shapes], np.arange(len(store)))
    for key in ("image_id", "image"):
        np.testing.assert_array_equal(stored[key], expected[key])
    tolerance = {"rtol": 2e-3, "atol": 2e-3}  # the store has half precision
    np.testing.assert_allclose(stored[SCORES], torch.cat(expected["own"], dim=1).numpy(), **tolerance)
    for tap in plan.shapes:
        np.testing.assert_allclose(stored[tap], expected[tap].numpy(), **tolerance)


def run_on_one_cpu(config: Config, tree: dict[str, Any], tmp_path: Path, *passes: str) -> dict[str, Any]:
    """Run passes on a Ray with one CPU in a separate process, and return their results."""
    path, result = tmp_path / "one_cpu.yaml", tmp_path / "result.pickle"
    given = {"images": {**tree["images"], "limit": 60}, "extract": {"batch_size": 16}, "ray": {"num_cpus": 1}}
    path.write_text(yaml.safe_dump(tree | given | {"output": str(config.output_dir)}))
    program = [sys.executable, str(Path(__file__).parent / "passes_on_one_cpu.py")]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [*program, str(path), str(tmp_path / "student"), str(result), *passes]
    subprocess.run(command, env=environment, check=True, timeout=TIMEOUT_S, capture_output=True)
    found: dict[str, Any] = pickle.loads(result.read_bytes())
    assert found["cpus"] == 1
    chosen = "placement chosen to fit: teachers 0.105 CPU; decoding 0.0525 CPU; 1 training worker"
    assert found["notes"] == (chosen,)
    return found


def assert_counts(found: Counts, config: Config, plan: Plan, student: Student, read: dict[str, Any]) -> None:
    index = {name: i for i, name in enumerate(plan.spec.classes)}
    label_sets = plan.label_sets
    with torch.inference_mode():
        scores = student.eval()(torch.tensor(read["image"])).numpy()
    expected = count_batch(
        targets=np.array([index[label] for label in read["label"]]),
        student=scores,
        ensemble=label_sets.amalgamate(torch.cat(read["own"], dim=1)).numpy(),
        teachers=[own.numpy() for own in read["own"]],
        columns=[label_sets.columns(teacher.name) for teacher in config.teachers],
    )
    assert found.images == len(read["image_id"]) == 54
    for field in fields(Counts):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(expected, field.name), err_msg=field.name
        )


def test_eight_teachers_and_a_student_are_evaluated_on_one_cpu(load_eight_teachers, config_tree, tmp_path):
    config = load_eight_teachers()
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    student = Student(plan.spec)
    save_student(student, tmp_path / "student")
    found = run_on_one_cpu(config, config_tree, tmp_path, "evaluation")
    assert_counts(found["evaluation"]["student"], config, plan, student, read_by_plain_loop(config, plan))


@pytest.mark.slow  # twice more, eight actors import torch one after another
def test_eight_teachers_extract_and_are_summed_up_on_one_cpu(load_eight_teachers, config_tree, tmp_path):
    config = load_eight_teachers()
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    found = run_on_one_cpu(config, config_tree, tmp_path, "extraction", "summing")
    read = read_by_plain_loop(config, plan)
    assert_stored(config.output_dir, read, plan)
    meter = LayerMomentsMeter(plan.spec, {tap: shape[0] for tap, shape in plan.shapes.items()}, POSITIONS)
    half_precision = {tap: read[tap].half().float() for tap in plan.shapes}
    scores = torch.cat(read["own"], dim=1).half().float()
    draws = torch.from_numpy(draw_uniform(read["image_id"], SEED, NUM_SOLVER_DRAWS))
    meter.add({"image": torch.tensor(read["image"]), SCORES: scores, "draws": draws, **half_precision})
    assert found["summing"].keys() == meter.total.keys()
    for name, part in meter.total.items():
        assert found["summing"][name].count == part.count
        torch.testing.assert_close(found["summing"][name].mean, part.mean, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["summing"][name].scatter, part.scatter, atol=1e-3, rtol=1e-5)
