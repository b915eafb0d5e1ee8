"""Test all stages for students whose features are tokens or maps with the channels last."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ka_ray.features.store import FEATURES
from ka_ray.numerics.relative_error import relative_error
from ka_ray.stages import run_stages
from ka_ray.stages.codes_learner import build_amalgamations
from ka_ray.stages.inputs import load_stage, stage_summary_path
from ka_ray.stages.layers_learner import LayerwiseLearner
from ka_ray.student import Student

VIT = (
    "{model_name: vit_tiny_patch16_224, img_size: 8, patch_size: 2, embed_dim: 8, depth: 2, num_heads: 2, "
    "{}num_classes: 10}"
)
SWIN = (
    "{model_name: swin_tiny_patch4_window7_224, img_size: 8, patch_size: 2, window_size: 2, embed_dim: 8, "
    "depths: [1, 1], num_heads: [1, 1], num_classes: 10}"
)
STUDENTS = {
    # Name -> arguments of timm:create_model, the student's two taps, stages that least squares can solve.
    "vit": (VIT.replace("{}", ""), "patch_embed.proj", "blocks.0", {"conv1"}),
    "vit, class token": (VIT.replace("{}", ""), "blocks.0", "blocks.1:cls", set()),
    "vit without class token": (
        VIT.replace("{}", "class_token: false, global_pool: avg, "),
        "patch_embed.proj",
        "fc_norm",
        {"conv1", "scores"},
    ),
    "swin": (SWIN, "patch_embed.proj", "layers.0", {"conv1"}),
}


@pytest.fixture
def make_token_inputs(make_inputs):
    def make(name: str, *overrides: str):
        arguments, early, late, _ = STUDENTS[name]
        taps = f"taps={{conv1: {{low: norm1, high: norm1, student: {early}}}, "
        taps += f"conv2: {{low: norm2, high: norm2, student: '{late}'}}}}"
        student = f"student={{network: 'timm:create_model', arguments: {arguments}}}"
        return make_inputs(student, taps, "joint.epochs=1", *overrides)

    return make


def load_summary(inputs, stage: str) -> dict:
    return json.loads(stage_summary_path(inputs.folder, stage).read_text())


@pytest.mark.parametrize("name", STUDENTS)
def test_layers_and_joint_learning_reduce_their_losses(make_token_inputs, name):
    inputs = make_token_inputs(name, "layers.epochs=6", "layers.learning_rate=0.003", "joint.epochs=4")
    run_stages(inputs)
    history = load_summary(inputs, "layers")["history"]
    for tap, last in history[-1]["losses"].items():
        assert last < history[0]["losses"][tap], tap
    losses = [record["losses"]["loss"] for record in load_summary(inputs, "joint")["history"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("layer_inputs", ["codes", "student"])
@pytest.mark.parametrize("name", STUDENTS)
def test_least_squares_solves_the_layers_that_get_features_alone(make_token_inputs, name, layer_inputs):
    inputs = make_token_inputs(
        name, "codes.solver=exact", "layers.solver=least_squares", f"layers.inputs={layer_inputs}"
    )
    run_stages(inputs)
    taps = load_summary(inputs, "layers")["taps"]
    assert {tap for tap, layer in taps.items() if layer["ridge"] is not None} == STUDENTS[name][3]


def test_the_error_of_a_solved_layer_is_that_of_its_output(make_token_inputs):
    name = "vit without class token"
    inputs = make_token_inputs(name, "codes.solver=exact", "layers.solver=least_squares", "joint.epochs=0")
    run_stages(inputs)
    encoders = build_amalgamations("direct", inputs.plan.channels, inputs.plan.spec.widths)
    load_stage(inputs.folder, "codes", encoders)
    student = Student(inputs.plan.spec)
    student.load_state_dict(
        load_file(stage_summary_path(inputs.folder, "layers").with_suffix(".safetensors"))
    )
    learner = LayerwiseLearner(student, encoders).eval()  # its adapters are identities
    batches = inputs.batches("layers", inputs.store(FEATURES), ["image", "scores", *encoders])
    sums = [learner.error_sums(batch)["conv1"] for batch in batches.single_pass()]
    measured = load_summary(inputs, "layers")["taps"]["conv1"]["relative_error"]
    assert relative_error(torch.stack(sums).sum(0)) < measured + 0.05
