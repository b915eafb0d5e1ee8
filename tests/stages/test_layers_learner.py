"""Test layer-wise learning: inputs and gradients of each stage, and that folding is exact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.amalgamation import LabelSets
from ka_ray.numerics.relative_error import relative_error
from ka_ray.stages.codes_learner import build_amalgamations
from ka_ray.stages.layers_learner import LayerwiseLearner, fold_adapters
from ka_ray.student import Student


@dataclass(frozen=True)
class StudentCase:
    """A student to test.

    Attributes:
        network: Name of the network.
        widths: Number of channels of each tap.
        arguments: Arguments of the network.
        size: Height and width of an image.
        paths: Modules at which the network is cut, by tap; empty for a network that has its own taps.
    """

    network: str
    widths: Mapping[str, int]
    arguments: Mapping[str, Any]
    size: int
    paths: Mapping[str, str] = field(default_factory=dict)


PLAIN_CONV_NET = "ka_ray.teachers.plain:plain_conv_net"
TIMM = "timm:create_model"
VIT = {
    "model_name": "vit_tiny_patch16_224",
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 4,
}
STUDENTS = {
    "convs": StudentCase("plain", {"conv1": 5, "conv2": 7, "conv3": 4}, {"widths": [4, 6, 8]}, 12),
    "convs, some without a tap": StudentCase("plain", {"conv2": 7}, {"widths": [4, 6, 8]}, 12),
    "convs and linear layers": StudentCase(
        "alexnet", {f"conv{i}": i + 1 for i in range(1, 6)} | {"fc6": 8, "fc7": 7}, {}, 64
    ),
    "cut, with batch norms": StudentCase(
        PLAIN_CONV_NET,
        {"a": 4, "b": 6},
        {"num_classes": 4, "widths": [4, 6]},
        12,
        {"a": "norm1", "b": "norm2"},
    ),
    "cut, with kept adapters": StudentCase(
        PLAIN_CONV_NET,
        {"a": 4, "b": 6},
        {"num_classes": 4, "widths": [4, 6]},
        12,
        {"a": "pool1", "b": "flatten"},
    ),
    "vit with a class token": StudentCase(
        TIMM, {"a": 12, "b": 12}, VIT, 16, {"a": "blocks.0", "b": "blocks.1"}
    ),
    "vit, cut at a class token": StudentCase(
        TIMM, {"a": 12, "b": 12}, VIT, 16, {"a": "blocks.0", "b": "blocks.1:cls"}
    ),
    "vit without a class token": StudentCase(
        TIMM,
        {"a": 12, "b": 12},
        {**VIT, "class_token": False, "global_pool": "avg"},
        16,
        {"a": "blocks.0", "b": "norm"},
    ),
    "swin": StudentCase(
        TIMM,
        {"a": 6, "b": 12},
        {
            "model_name": "swin_tiny_patch4_window7_224",
            "window_size": 2,
            "img_size": 16,
            "embed_dim": 6,
            "depths": [1, 1],
            "num_heads": [1, 1],
            "num_classes": 4,
        },
        16,
        {"a": "layers.0", "b": "layers.1.downsample.reduction"},
    ),
}
TOKEN_STUDENTS = [name for name, case in STUDENTS.items() if case.network == TIMM]


@pytest.fixture
def make_learner(make_spec, randomised) -> Callable[..., LayerwiseLearner]:
    """Return a function that makes a learner with random adapters, encoders, biases and batch norms."""

    def make(name: str = "convs", **changes: Any) -> LayerwiseLearner:
        case = STUDENTS[name]
        spec = make_spec(case.network, dict(case.widths), image_size=case.size, **case.arguments)
        student = Student(replace(spec, **({"paths": case.paths} if case.paths else {}), **changes))
        assert {tap: shape[0] for tap, shape in student.shapes.items()} == case.widths
        channels = {tap: (width, 3, 2) for tap, width in case.widths.items()}
        learner = LayerwiseLearner(student, build_amalgamations("incremental", channels, case.widths))
        randomised(student)
        randomise_adapters(learner)
        return learner.train()

    return make


@torch.no_grad()
def randomise_adapters(learner: LayerwiseLearner) -> None:
    for adapter in learner.adapters.values():
        channels = len(adapter.linear.bias)
        adapter.linear.weight.normal_(0, channels**-0.5)
        adapter.linear.bias.normal_()


def make_images(learner: LayerwiseLearner, count: int = 3) -> Tensor:
    size = learner.student.spec.image_size
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def run_in_turn(learner: LayerwiseLearner, images: Tensor) -> dict[str, Tensor]:
    """Run stages and adapters in turn, and return the output of each tap, after its adapter if it has one."""
    features, outputs = learner.student.preprocess(images), {}
    for tap, stage in learner.student.stages.items():
        features = stage(features)
        if tap in learner.adapters:
            # An adapter acts on all tokens, also on those that have no code.
            adapter, channels_last = learner.adapters[tap], learner.student.layouts[tap].channels_last
            features = adapter.linear(features) if channels_last else adapter(features)
        outputs[tap] = features
    return outputs


def make_batch(learner: LayerwiseLearner, count: int = 3) -> dict[str, Tensor]:
    """Return images, scores and random stacked features of the right shapes."""
    images = make_images(learner, count)
    label_sets = LabelSets(learner.student.spec.label_sets, learner.student.spec.rule)
    batch = {"image": images, "scores": torch.randn(count, label_sets.num_scores)}
    for tap, shape in learner.student.shapes.items():
        batch[tap] = torch.randn(count, sum(learner.encoders[tap].spans), *shape[1:])
    return batch


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", STUDENTS)
@torch.no_grad()
def test_the_folded_student_computes_the_same_as_its_stages_and_adapters_in_turn(
    make_learner, name, dtype, tolerance
):
    learner = make_learner(name).to(dtype).eval()
    images = make_images(learner)
    expected = run_in_turn(learner, images)
    student = fold_adapters(learner)
    features = student.preprocess(images)
    for tap, stage in student.stages.items():
        features = stage(features)
        assert (features - expected[tap]).abs().max() <= tolerance, tap
    assert (student(images) - expected["scores"]).abs().max() <= tolerance


NETWORKS = {
    "resnet18": {"stem": "bn1", "early": "layer2", "late": "layer4", "pooled": "avgpool"},
    "mobilenet_v3_small": {"stem": "features.0", "a": "features.1", "b": "features.4", "c": "features.11"},
}
KEPT_ADAPTERS = {"resnet18": ["early", "late", "pooled"], "mobilenet_v3_small": ["stem", "c"]}


@pytest.mark.parametrize("network", NETWORKS)
def test_folding_keeps_the_outputs_of_a_trained_network_with_batch_norms(make_spec, network):
    spec = make_spec(network, {}, image_size=32)
    student = Student(replace(spec, paths=NETWORKS[network]))
    widths = {tap: shape[0] for tap, shape in student.shapes.items()}
    student.spec = replace(student.spec, widths=widths)
    assert [*student.kept_adapters] == KEPT_ADAPTERS[network]
    channels = {tap: (width, 4) for tap, width in widths.items()}
    learner = LayerwiseLearner(student, build_amalgamations("direct", channels, widths)).eval()
    batch = make_batch(learner, 8)
    learner.train()
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], 1e-3)
    for _ in range(3):  # changes weights, adapters and running statistics of the batch norms
        optimizer.zero_grad()
        torch.stack(list(learner(batch).values())).sum().backward()
        optimizer.step()
    randomise_adapters(learner)
    images = make_images(learner, 4)
    with torch.no_grad():
        expected = run_in_turn(learner.eval(), images)
        folded = fold_adapters(learner)
        features = folded.preprocess(images)
        for tap, stage in folded.stages.items():
            features = stage(features)
            assert expected[tap].std() > 1e-2
            assert (features - expected[tap]).abs().max() <= 1e-4 * max(1, expected[tap].abs().max()), tap
        assert torch.equal(folded(images), features)


def test_folding_puts_the_learner_into_eval_mode(make_learner):
    learner = make_learner("cut, with batch norms")
    assert learner.training
    student = fold_adapters(learner)
    assert student is learner.student
    assert not any(module.training for module in learner.modules())


@pytest.mark.parametrize("name", STUDENTS)
def test_folding_keeps_the_names_and_shapes_of_the_parameters(make_learner, name):
    learner = make_learner(name)
    before = {name: tensor.shape for name, tensor in learner.student.state_dict().items()}
    after = {name: tensor.shape for name, tensor in fold_adapters(learner).state_dict().items()}
    assert after == before


def test_losses_equal_those_computed_by_hand(make_learner):
    learner = make_learner()
    batch = make_batch(learner)
    codes = {}
    for tap, chain in learner.encoders.items():  # the second link adds the third teacher, with two channels
        first, second = (link.encoder for link in chain.links)
        codes[tap] = functional.conv2d(batch[tap][:, :-2], first.weight[:, :, None, None], first.bias)
        joined = torch.cat([codes[tap], batch[tap][:, -2:]], dim=1)
        codes[tap] = functional.conv2d(joined, second.weight[:, :, None, None], second.bias)

    def adapted(tap: str) -> Tensor:
        linear = learner.adapters[tap].linear
        return functional.conv2d(codes[tap], linear.weight[:, :, None, None], linear.bias)

    def last(tap: str) -> nn.Module:
        return learner.student.stages[tap][-1]

    def conv(tap: str, features: Tensor) -> Tensor:
        return functional.conv2d(features, last(tap).weight, last(tap).bias, padding=1)

    estimates = {
        "conv1": conv("conv1", learner.student.preprocess(batch["image"])),
        "conv2": conv("conv2", functional.max_pool2d(adapted("conv1").relu(), 2)),
        "conv3": conv("conv3", functional.max_pool2d(adapted("conv2").relu(), 2)),
        "scores": last("scores")(adapted("conv3").relu().mean((2, 3))),
    }
    targets = codes | {"scores": batch["scores"]}
    losses = learner(batch)
    assert list(losses) == list(estimates)
    for tap, estimate in estimates.items():
        torch.testing.assert_close(losses[tap], ((estimate - targets[tap]) ** 2).mean() / 2)


@pytest.mark.parametrize("tap", ["conv1", "conv2", "conv3", "scores"])
def test_the_loss_of_a_tap_has_gradients_only_for_its_stage_and_the_adapter_before(make_learner, tap):
    learner = make_learner()
    learner(make_batch(learner))[tap].backward()
    taps = ["conv1", "conv2", "conv3", "scores"]
    before = taps[taps.index(tap) - 1] if tap != "conv1" else None
    expected = {f"student.stages.{tap}"} | ({f"adapters.{before}"} if before else set())
    reached = {
        next(
            part
            for part in [*(f"student.stages.{t}" for t in taps), *(f"adapters.{t}" for t in taps)]
            if name.startswith(f"{part}.")
        )
        for name, parameter in learner.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert reached == expected


@pytest.mark.parametrize("name", ["cut, with batch norms", "cut, with kept adapters", *TOKEN_STUDENTS])
def test_in_a_cut_network_the_loss_of_a_tap_has_gradients_only_for_its_stage_and_the_adapter_before(
    make_learner, name
):
    learner = make_learner(name)
    learner(make_batch(learner))["b"].backward()
    reached = {
        name.removeprefix("student.stages.").split(".")[0]
        for name, parameter in learner.named_parameters()
        if parameter.grad is not None
    }
    assert reached == {"b", "adapters"}
    assert learner.adapters["a"].linear.weight.grad.abs().max() > 0
    assert learner.adapters["b"].linear.weight.grad is None


@pytest.mark.parametrize("name", TOKEN_STUDENTS)
@torch.no_grad()
def test_with_perfect_codes_every_stage_computes_what_it_computes_in_the_student(
    make_learner, name, monkeypatch
):
    learner = make_learner(name).eval()
    images, outputs = make_images(learner), {}
    for adapter in learner.adapters.values():  # so that the student itself has the codes
        adapter.linear.weight.copy_(torch.eye(len(adapter.linear.weight)))
        adapter.linear.bias.zero_()
    expected = run_in_turn(learner, images)
    for tap, encoder in learner.encoders.items():
        outputs[tap] = learner.student.layouts[tap].split(expected[tap])[0]
        monkeypatch.setattr(encoder, "encode", lambda features: features)
    pairs = learner.estimates_and_targets({"image": images, "scores": torch.zeros(3, 4)} | outputs)
    for estimate, target in list(pairs.values())[:-1]:
        torch.testing.assert_close(estimate, target, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pairs["scores"][0], learner.student(images), rtol=1e-4, atol=1e-4)


OVERLAPPING_LABEL_SETS = {"low": ("a", "b", "c"), "high": ("d", "c")}
"""Four classes a, b, c, d. The teachers' scores side by side are those of a, b, c, d, c."""


@pytest.mark.parametrize("rule", [None, "mean", "max"])
def test_score_losses_of_overlapping_label_sets_follow_the_score_rule(make_learner, rule):
    learner = make_learner(label_sets=OVERLAPPING_LABEL_SETS, rule=rule)
    batch = make_batch(learner, 6)
    own = batch["scores"]
    both = torch.maximum(own[:, 2], own[:, 4]) if rule == "max" else (own[:, 2] + own[:, 4]) / 2
    target = torch.stack([own[:, 0], own[:, 1], both, own[:, 3]], dim=1)
    estimate = learner.estimates_and_targets(batch)["scores"][0]
    torch.testing.assert_close(learner(batch)["scores"], ((estimate - target) ** 2).mean() / 2)
    error = ((estimate - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert relative_error(learner.error_sums(batch)["scores"]) == pytest.approx(error.item(), rel=1e-4)


def test_the_last_layer_is_trained_on_centred_scores(make_learner):
    learner = make_learner(label_sets=OVERLAPPING_LABEL_SETS, rule="max", center=True)
    batch = make_batch(learner, 6)
    low, high = (part - part.mean(1, keepdim=True) for part in batch["scores"].split([3, 2], dim=1))
    target = torch.cat([low[:, :2], torch.maximum(low[:, 2:], high[:, 1:]), high[:, :1]], dim=1)
    estimate = learner.estimates_and_targets(batch)["scores"][0]
    torch.testing.assert_close(learner(batch)["scores"], ((estimate - target) ** 2).mean() / 2)


def test_the_rule_conditional_compares_each_teachers_scores_among_its_classes(make_learner):
    learner = make_learner(label_sets=OVERLAPPING_LABEL_SETS, rule="conditional")
    batch = make_batch(learner, 6)
    estimate = learner.estimates_and_targets(batch)["scores"][0]
    expected = 0.0
    for own, columns in ((batch["scores"][:, :3], [0, 1, 2]), (batch["scores"][:, 3:], [3, 2])):
        p, q = own.softmax(1), estimate[:, columns].softmax(1)
        expected += (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(learner(batch)["scores"], expected)


def test_the_relative_error_of_the_rule_conditional_ignores_a_constant_added_to_all_scores(make_learner):
    learner = make_learner(label_sets=OVERLAPPING_LABEL_SETS, rule="conditional").eval()
    batch = make_batch(learner, 6)
    before = relative_error(learner.error_sums(batch)["scores"])
    with torch.no_grad():
        learner.student.stages["scores"][-1].bias.add_(5)
    assert relative_error(learner.error_sums(batch)["scores"]) == pytest.approx(before, rel=1e-4)
    target = LabelSets(OVERLAPPING_LABEL_SETS, "conditional").amalgamate(batch["scores"])
    estimate = learner.estimates_and_targets(batch)["scores"][0]
    estimate, target = (t - t.mean(1, keepdim=True) for t in (estimate.detach(), target))
    error = ((estimate - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert before == pytest.approx(error.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["convs", *TOKEN_STUDENTS])
def test_all_parameters_except_those_of_the_encoders_get_gradients(make_learner, name):
    learner = make_learner(name)
    torch.stack(list(learner(make_batch(learner)).values())).sum().backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoders."), name


@pytest.mark.parametrize(
    "name", ["convs", "convs and linear layers", "cut, with batch norms", *TOKEN_STUDENTS]
)
def test_the_relative_error_covers_all_batches(make_learner, name):
    learner = make_learner(name).eval()
    batches = [make_batch(learner, count) for count in (4, 3, 5)]
    sums: dict[str, Tensor] = {}
    for batch in batches:
        for tap, part in learner.error_sums(batch).items():
            sums[tap] = sums.get(tap, 0) + part
    for tap, total in sums.items():
        estimates_and_targets = [learner.estimates_and_targets(batch)[tap] for batch in batches]
        estimate, target = (
            torch.cat(part).detach().double().numpy() for part in zip(*estimates_and_targets, strict=True)
        )
        axes = (0, *range(2, target.ndim))
        variance = ((target - target.mean(axis=axes, keepdims=True)) ** 2).sum()
        expected = ((estimate - target) ** 2).sum() / variance
        assert relative_error(total) == pytest.approx(expected, rel=1e-5), tap
        assert total.dtype == torch.float64


def test_the_relative_error_is_zero_for_the_target_and_one_for_its_mean():
    target = np.random.default_rng(0).normal(size=(50, 3)) + 4
    first, second = target.sum(0), (target**2).sum(0)
    variance = ((target - target.mean(0)) ** 2).sum()
    for error, expected in ((0.0, 0.0), (variance, 1.0)):
        sums = torch.tensor([error, 50.0, *first, *second], dtype=torch.float64)
        assert relative_error(sums) == pytest.approx(expected, abs=1e-9)
