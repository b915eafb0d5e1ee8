"""Test that random configs end in a plan or in one message: every command runs until Ray would be opened."""

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from outcomes import BUG, MESSAGE, RESULT, Outcome, describe_bugs, run_case
from PIL import Image
from random_configs import ConfigMaker

import ka_ray
from ka_ray.config import Config, RayConfig, TeachConfig
from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.resource_plan import plan_resources
from ka_ray.runs import context
from ka_ray.tracking.null import NullTracker

TEMPLATE = Path(__file__).parents[2] / "jobs/configs/folder.yaml"
COMMANDS: dict[str, Callable[[Config], Any]] = {
    "run": ka_ray.amalgamate,
    "compare": lambda config: ka_ray.compare(config, vary=["joint.loss=mse,kl"]),
    "tune": ka_ray.search_widths,
    "spectrum": ka_ray.measure_spectrum,
}


class Planned(Exception):
    """The run is planned, its resources are chosen, and its output folder is made: work would begin now."""


@pytest.fixture
def until_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command stop with :class:`Planned` where its work would begin; no Ray and no MLflow."""

    @contextmanager
    def connect(config: RayConfig) -> Iterator[Cluster]:
        yield Cluster((Host("127.0.0.1", {"CPU": 2.0, "memory": 2.0**33}, {}),), bool(config.autoscaling))

    @contextmanager
    def open_tracker(*_: Any) -> Iterator[NullTracker]:
        yield NullTracker()

    def plan_and_stop(config: Any, cluster: Cluster) -> None:
        plan_resources(config, cluster)
        raise Planned

    monkeypatch.setattr(context, "connect", connect)
    monkeypatch.setattr(context, "open_tracker", open_tracker)
    monkeypatch.setattr(context, "plan_resources", plan_and_stop)


@pytest.fixture
def bases(config_tree: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    """A short config, and one with every key of the template, of small networks and images."""
    for number in range(12):
        path = tmp_path / f"images/digit_{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    template: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    first = template["teachers"][0]
    template["teachers"] = [{**first, **teacher} for teacher in config_tree["teachers"]]
    template["images"] |= {"path": str(tmp_path / "images"), "size": 8}
    template["taps"] = {"conv1": "conv1", "conv2": "conv2"}
    for stage in ("codes", "layers", "joint"):
        template[stage]["batch_size"] = 4
    (tmp_path / "names.txt").write_text("digit_0\ndigit_1\n", encoding="utf-8")
    (tmp_path / "list.csv").write_text("path,label\nimages/digit_0/0.png,digit_0\n", encoding="utf-8")
    random_start = {"student": {"start": "random"}, "codes": {"solver": "sgd"}}
    return [config_tree, template, config_tree | random_start]


def plan_random_configs(
    number: int, seed: int, bases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Outcome]:
    """Plan random configs, each in an own folder, and return how each ended."""
    paths = [str(path) for path in sorted(tmp_path.rglob("*"))]
    maker = ConfigMaker(Config.model_json_schema(), bases, paths, seed)
    choices, outcomes = random.Random(seed), []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    for case in range(number):
        tree, changes = maker.make()
        command = choices.choice(("run", "run", "run", "compare", "tune", "spectrum", "teach"))
        folder = tmp_path / "cases/of/this/test" / f"{case:04}"  # deep, so that `../..` is not outside
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

        def plan(folder: Path = folder, command: str = command) -> None:
            try:
                if command == "teach":
                    ka_ray.teach(TeachConfig.load(folder / "teach.yaml"))
                else:
                    COMMANDS[command](Config.load(folder / "run.yaml"))
            except Planned:
                return
            raise AssertionError("the command has not planned its resources")

        (folder / "teach.yaml").write_text(yaml.safe_dump(to_teach(tree)), encoding="utf-8")
        outcomes.append(run_case(f"{case} {command}: {changes}", plan, tmp_path))
    return outcomes


def to_teach(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the training of the first teacher, of what is left of a config."""
    known = {key: tree[key] for key in TeachConfig.model_fields if key in tree}
    teachers = tree.get("teachers")
    teacher = teachers[0] if isinstance(teachers, list) and teachers else teachers
    if isinstance(teacher, dict):
        teacher = {**teacher, "checkpoint": None, "training": {"epochs": 1, "batch_size": 4}}
    return known | {"teacher": teacher}


def test_random_configs_end_in_a_plan_or_in_one_message(bases, until_work_begins, tmp_path, monkeypatch):
    outcomes = plan_random_configs(100, 2, bases, tmp_path, monkeypatch)
    kinds = [outcome.kind for outcome in outcomes]
    assert BUG not in kinds, describe_bugs(outcomes)
    # Both ends are reached often, else the configs would not test much.
    assert kinds.count(RESULT) >= 15
    assert kinds.count(MESSAGE) >= 30


@pytest.mark.slow
def test_2000_random_configs_end_in_a_plan_or_in_one_message(bases, until_work_begins, tmp_path, monkeypatch):
    outcomes = plan_random_configs(2000, 17, bases, tmp_path, monkeypatch)
    assert not [outcome for outcome in outcomes if outcome.kind == BUG], describe_bugs(outcomes)
