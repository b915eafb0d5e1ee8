"""Later commands reuse results of earlier ones: finished students, and auto-encoders (on Ray)."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file

import ka_ray
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.teachers.plain import plain_conv_net

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]

QUICK = (
    "images.limit=300",
    "codes={epochs: 1, batch_size: 32}",
    "layers={epochs: 1, batch_size: 32}",
    "joint={epochs: 1, batch_size: 32}",
)
JOINING_CLASSES = ("digit_0", "cat")


def read_files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_comparing_more_seeds_and_methods_keeps_the_finished_students(load_config, tmp_path):
    config = load_config(*QUICK, f"output={tmp_path / 'out'}", "tracking.backend=mlflow")
    pattern = "methods/*/*/**/*.safetensors"
    first = ka_ray.compare(config, ["direct", "distill"])
    students = read_files(config.output_dir, pattern)
    assert {Path(name).parts[1] for name in students} == {"direct", "distill"}

    second = ka_ray.compare(config, ["direct", "incremental", "distill", "scratch"], num_seeds=2)
    all_students = read_files(config.output_dir, pattern)
    assert all_students.items() > students.items()
    assert [row.label for row in second.rows] == ["ensemble", "direct", "incremental", "distill", "scratch"]
    assert second.rows[0] == first.rows[0]
    for method in ("direct", "distill"):
        old, new = first.row(method), second.row(method)
        assert len(new.union.values) == 2
        assert [new.union.values[0], new.agreement.values[0]] == [*old.union.values, *old.agreement.values]
        assert (new.images, new.parameters) == (old.images, old.parameters)
    budget = second.row("direct").images
    assert budget == 2 * (270 // 32) * 32  # a tenth is held out
    assert [row.images for row in second.rows] == [0, budget, budget, budget, budget]
    seeds = [load_file(f) for f in sorted(config.output_dir.glob("methods/direct/*/student.safetensors"))]
    assert any((seeds[0][name] != seeds[1][name]).any() for name in seeds[0])

    client = MlflowClient(f"sqlite:///{config.output_dir}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'ka_ray'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    (parent,) = (run for name, run in runs.items() if name.endswith("_compare"))
    names = {f"{row.label} seed {seed}" for row in second.rows[1:] for seed in (0, 1)}
    assert {*runs} == {*names, parent.info.run_name}
    for name in names:
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[name].info.status == "FINISHED"
        method, seed = name.split(" seed ")
        assert runs[name].data.metrics["evaluate/union"] == second.row(method).union.values[int(seed)]


def test_a_run_extended_twice_keeps_the_earlier_auto_encoders_and_gate(load_config, config_tree, tmp_path):
    first = config_tree["teachers"][0]
    for seed, name in enumerate(("third", "fourth")):
        torch.manual_seed(seed)
        checkpoint = tmp_path / f"{name}.safetensors"
        save_file(plain_conv_net(len(JOINING_CLASSES), first["arguments"]["widths"]).state_dict(), checkpoint)
        joining = {"name": name, "classes": [*JOINING_CLASSES], "checkpoint": str(checkpoint)}
        config_tree["teachers"].append(first | joining)
    teachers, links = config_tree["teachers"], list[dict[str, torch.Tensor]]()
    learned = tmp_path / "run_2/gates/self/gate.safetensors"
    for count in (2, 3, 4):
        config_tree["teachers"] = teachers[:count]
        overrides = [f"output={tmp_path / f'run_{count}'}", f"seed={count}", "codes.method=incremental"]
        overrides.append("placement.teachers.cpu=0.25")
        overrides.append("scores.gate=self" if count == 2 else f"extend={tmp_path / f'run_{count - 1}'}")
        config = load_config(*QUICK, *overrides, "tracking.backend=none")
        report = ka_ray.amalgamate(config)
        assert report.classes == [*dict.fromkeys(name for t in config.teachers for name in t.classes)]
        if count > 2:
            assert (report.extension.reused, report.extension.trained) == (count - 2, 1)
            assert report.gate.used == "extended"
            assert report.accuracy.gate.ensemble > 0
            reused = config.output_dir / "gates/extended/gate.safetensors"
            assert reused.read_bytes() == learned.read_bytes()
        codes = load_file(stage_summary_path(config.output_dir, "codes").with_suffix(".safetensors"))
        links.append({name: weight for name, weight in codes.items() if ".links." in name})
    for before, after in pairwise(links):
        assert after.keys() > before.keys()
        for name, weight in before.items():
            assert torch.equal(after[name], weight), name
