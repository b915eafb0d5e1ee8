"""Layer-wise learning: what each stage is fed, which gradients flow, and that folding is exact."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.student import Student
from ka_ray.student.layerwise import LayerwiseLearner, fold_adapters, relative_error
from ka_ray.training.codes import empty_autoencoders

SMALL_ALEXNET = {f"conv{i}": i + 1 for i in range(1, 6)} | {"fc6": 8, "fc7": 7}
STUDENTS: dict[str, tuple[str, dict[str, int], dict[str, Any], int]] = {
    "convs": ("plain", {"conv1": 5, "conv2": 7, "conv3": 4}, {"widths": [4, 6, 8]}, 12),
    "convs without a tap between": ("plain", {"conv2": 7}, {"widths": [4, 6, 8]}, 12),
    "convs and linear layers": ("alexnet", SMALL_ALEXNET, {}, 64),
}


def make_learner(make_spec, name: str = "convs") -> LayerwiseLearner:
    """A learner whose adapters, encoders and biases are all random."""
    network, widths, arguments, size = STUDENTS[name]
    student = Student(make_spec(network, widths, image_size=size, **arguments))
    stacked = {tap: width + 3 for tap, width in widths.items()}
    learner = LayerwiseLearner(student, empty_autoencoders(stacked, widths))
    with torch.no_grad():
        for adapter in learner.adapters.values():
            channels = len(adapter.linear.bias)
            adapter.linear.weight.normal_(0, channels**-0.5)
            adapter.linear.bias.normal_()
    return learner


def pixels(learner: LayerwiseLearner, count: int = 3) -> Tensor:
    size = learner.student.spec.image_size
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def in_turn(learner: LayerwiseLearner, images: Tensor) -> dict[str, Tensor]:
    """Run stage, adapter, stage, adapter, ... on images: what each tap has behind its adapter."""
    features, outputs = learner.student.preprocess(images), {}
    for tap, stage in learner.student.stages.items():
        features = stage(features)
        if tap in learner.adapters:
            features = learner.adapters[tap](features)
        outputs[tap] = features
    return outputs


def make_batch(learner: LayerwiseLearner, count: int = 3) -> dict[str, Tensor]:
    """Images, scores, and random stacked features of the right shapes."""
    images = pixels(learner, count)
    with torch.no_grad():
        outputs = in_turn(learner, images)
    batch = {"image": images, "scores": torch.randn_like(outputs.pop("scores"))}
    for tap, output in outputs.items():
        stacked = learner.encoders[tap].encoder.in_features
        batch[tap] = torch.randn(count, stacked, *output.shape[2:])
    return batch


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", STUDENTS)
@torch.no_grad()
def test_the_folded_student_is_the_chain_of_stages_and_adapters(make_spec, name, dtype, tolerance):
    learner = make_learner(make_spec, name).to(dtype).eval()
    images = pixels(learner)
    expected = in_turn(learner, images)
    student = fold_adapters(learner)
    features = student.preprocess(images)
    for tap, stage in student.stages.items():
        features = stage(features)
        assert (features - expected[tap]).abs().max() <= tolerance, tap
    assert (student(images) - expected["scores"]).abs().max() <= tolerance


def test_folding_adds_no_parameter(make_spec):
    learner = make_learner(make_spec)
    before = {name: tensor.shape for name, tensor in learner.student.state_dict().items()}
    after = {name: tensor.shape for name, tensor in fold_adapters(learner).state_dict().items()}
    assert after == before


def test_losses_are_the_equations(make_spec):
    learner = make_learner(make_spec)
    batch = make_batch(learner)
    codes = {}
    for tap, encoder in learner.encoders.items():
        weight = encoder.encoder.weight[:, :, None, None]
        codes[tap] = functional.conv2d(batch[tap], weight, encoder.encoder.bias)

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
def test_no_gradient_crosses_a_tap(make_spec, tap):
    learner = make_learner(make_spec)
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


def test_encoders_are_frozen_and_the_rest_learns(make_spec):
    learner = make_learner(make_spec)
    torch.stack(list(learner(make_batch(learner)).values())).sum().backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoders."), name


@pytest.mark.parametrize("name", ["convs", "convs and linear layers"])
def test_the_relative_error_is_that_over_all_batches(make_spec, name):
    learner = make_learner(make_spec, name).eval()
    batches = [make_batch(learner, count) for count in (4, 3, 5)]
    sums: dict[str, Tensor] = {}
    for batch in batches:
        for tap, part in learner.squared_errors(batch).items():
            sums[tap] = sums.get(tap, 0) + part
    for tap, total in sums.items():
        pairs = [learner.pairs(batch)[tap] for batch in batches]
        estimate, target = (torch.cat(part).detach().double().numpy() for part in zip(*pairs, strict=True))
        axes = (0, *range(2, target.ndim))
        variance = ((target - target.mean(axis=axes, keepdims=True)) ** 2).sum()
        expected = ((estimate - target) ** 2).sum() / variance
        assert relative_error(total) == pytest.approx(expected, rel=1e-5), tap
        assert total.dtype == torch.float64


def test_a_perfect_estimate_has_no_error_and_the_mean_has_one():
    target = np.random.default_rng(0).normal(size=(50, 3)) + 4
    first, second = target.sum(0), (target**2).sum(0)
    variance = ((target - target.mean(0)) ** 2).sum()
    for error, expected in ((0.0, 0.0), (variance, 1.0)):
        sums = torch.tensor([error, 50.0, *first, *second], dtype=torch.float64)
        assert relative_error(sums) == pytest.approx(expected, abs=1e-9)
