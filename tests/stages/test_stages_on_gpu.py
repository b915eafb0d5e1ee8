"""Test that the stages give on a GPU what they give on the CPU."""

import json
from dataclasses import replace

import pytest
import torch

from ka_ray.stages import list_stages, run_stages
from ka_ray.stages.inputs import StageInputs, stage_summary_path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    # Convs of a GPU round their inputs to 10 bits by default.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def summaries(inputs: StageInputs):
    run_stages(inputs)
    return {
        stage: json.loads(stage_summary_path(inputs.folder, stage).read_text())
        for stage in list_stages(inputs.config)
    }


@pytest.fixture
def on_both(make_inputs, tmp_path):
    """Run all stages on the CPU and on a GPU, and return the summaries of both."""

    def run(*overrides: str):
        inputs = make_inputs(*overrides)
        on_gpu = replace(inputs, folder=tmp_path / "gpu", device=torch.device("cuda"))
        return summaries(inputs), summaries(on_gpu)

    return run


@pytest.mark.parametrize("start", ["auto", "average", "exact", "{teacher: high}"])
def test_every_start_and_joint_learning(on_both, start):
    cpu, gpu = on_both(f"student.start={start}", "joint.epochs=2")
    found, expected = (one["start"]["candidates"] for one in (gpu, cpu))
    assert [one["name"] for one in found] == [one["name"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["divergence"] == pytest.approx(other["divergence"], rel=0.02, abs=1e-4), one["name"]
    losses = [[r["losses"]["loss"] for r in one["joint"]["history"]] for one in (gpu, cpu)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize(("codes", "layers"), [("exact", "least_squares"), ("sgd", "sgd")])
def test_codes_and_layers(on_both, codes, layers):
    cpu, gpu = on_both("student.start=random", f"codes.solver={codes}", f"layers.solver={layers}")
    for stage in ("codes", "layers"):
        for tap, errors in cpu[stage]["taps"].items():
            found, expected = gpu[stage]["taps"][tap], errors
            if isinstance(errors, dict):
                found, expected = found["relative_error"], errors["relative_error"]
            assert found == pytest.approx(expected, rel=0.03), (stage, tap)
    losses = [one["joint"]["history"][-1]["losses"]["loss"] for one in (cpu, gpu)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize("more", ["student.widths={energy: 0.9}", "layers.behind_start=true"])
def test_other_widths_and_layers_behind_a_start(on_both, more):
    cpu, gpu = on_both("student.start=exact", "joint.epochs=1", more)
    assert gpu["start"]["chosen"] == cpu["start"]["chosen"]
    for one, other in zip(gpu["start"]["candidates"], cpu["start"]["candidates"], strict=True):
        assert one["divergence"] == pytest.approx(other["divergence"], rel=0.02)
