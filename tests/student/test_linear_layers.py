"""Test solved layers against ridge regression in numpy, on patches that plain loops extract."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ka_ray.numerics.moments import Moments
from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.ridge import solve
from ka_ray.student.linear_layers import (
    apply_solution,
    extract_patches,
    find_solvable_layer,
    make_layer_samples,
)

LAYERS = {
    "plain": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 9, 8)),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2), (3, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "oblong kernel": (lambda: nn.Conv2d(2, 3, (1, 3), stride=(1, 2), padding=(0, 1)), (2, 5, 7)),
    "same padding": (lambda: nn.Conv2d(2, 3, (5, 3), padding="same"), (2, 5, 7)),
    "reflect padding": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 7)),
    "linear": (lambda: nn.Linear(7, 3), (7,)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make_layer_and_features(name: str, images: int = 60) -> tuple[nn.Module, torch.Tensor]:
    build, shape = LAYERS[name]
    return build().double(), torch.randn(images, *shape, dtype=torch.float64)


def layer_moments(*arguments: Any) -> list[Moments]:
    return [Moments.of(group) for group in make_layer_samples(*arguments).flatten(0, 1).unbind(dim=1)]


def split_moments(
    layer: nn.Module, features: torch.Tensor, targets: torch.Tensor
) -> tuple[list[Moments], list[Moments]]:
    split = len(features) * 2 // 3
    return layer_moments(layer, features[:split], targets[:split]), layer_moments(
        layer, features[split:], targets[split:]
    )


@every_layer
def test_a_layer_is_a_linear_map_of_its_patches(name):
    layer, features = make_layer_and_features(name)
    with torch.no_grad():
        expected = layer(features)
        inputs = extract_patches(layer, features)
        weight = layer.weight.flatten(1).unflatten(0, (inputs.shape[2], -1))
        outputs = torch.einsum("bpgd,gtd->bpgt", inputs, weight).flatten(2) + layer.bias
    torch.testing.assert_close(
        outputs, expected.flatten(2).transpose(1, 2) if expected.dim() > 2 else expected[:, None]
    )


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (2, 5)])
@pytest.mark.parametrize("padding", ["same", "valid", 1, (2, 0), (0, 1)])
@torch.no_grad()
def test_patches_are_padded_as_in_a_conv_of_torch(padding, kernel, dilation, mode):
    layer = nn.Conv2d(2, 3, kernel, padding=padding, dilation=dilation, padding_mode=mode).double()
    features = torch.randn(2, 2, 13, 14, dtype=torch.float64)
    outputs = extract_patches(layer, features)[:, :, 0] @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(outputs, layer(features).flatten(2).transpose(1, 2))
    if mode == "zeros":
        convolved = functional.conv2d(features, layer.weight, layer.bias, 1, padding, dilation)
        torch.testing.assert_close(outputs, convolved.flatten(2).transpose(1, 2))


@every_layer
def test_patches_at_sampled_positions_equal_those_selected_from_all_patches(name):
    layer, features = make_layer_and_features(name, images=7)
    all_patches = extract_patches(layer, features)
    positions = sample_positions(torch.rand(7), all_patches.shape[1], 3)
    expected = all_patches[torch.arange(7)[:, None], positions]
    assert torch.equal(extract_patches(layer, features, positions), expected)


@every_layer
def test_a_layer_is_recovered_from_its_outputs(name):
    true_layer, features = make_layer_and_features(name)
    targets = true_layer(features).detach()
    solution = solve(
        *split_moments(true_layer, features, targets),
        num_outputs=len(true_layer.bias) // getattr(true_layer, "groups", 1),
    )
    assert solution.relative_error < 1e-12
    layer = LAYERS[name][0]().double()
    apply_solution(solution, layer, None)
    torch.testing.assert_close(layer(features), targets, atol=1e-6, rtol=1e-6)


def test_the_solution_equals_ridge_regression_in_numpy():
    layer, features = make_layer_and_features("plain")
    targets = torch.randn(60, 4, 6, 5, dtype=torch.float64)
    first, second = split_moments(layer, features, targets)
    solution = solve(first, second, num_outputs=4, ridges=[0.3])
    rows, values = [], []  # each row has 3 x 3 x 3 = 27 inputs
    padded = np.pad(features.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for image in range(60):
        for y in range(6):
            for x in range(5):
                rows.append(padded[image, :, y : y + 3, x : x + 3].ravel())
                values.append(targets[image, :, y, x].numpy())
    x, y = np.array(rows), np.array(values)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    gram = centred_x.T @ centred_x / len(x)
    weight = np.linalg.solve(
        gram + 0.3 * np.trace(gram) / 27 * np.eye(27), centred_x.T @ centred_y / len(x)
    ).T
    bias = y.mean(0) - weight @ x.mean(0)
    np.testing.assert_allclose(solution.weight[0], weight, atol=1e-12)
    np.testing.assert_allclose(solution.bias[0], bias, atol=1e-12)
    outputs = x @ weight.T + bias
    np.testing.assert_allclose(solution.mean[0], outputs.mean(0), atol=1e-12)
    np.testing.assert_allclose(solution.variance[0], outputs.var(0), atol=1e-12)


def test_the_ridge_with_the_least_error_on_held_out_images_is_chosen_and_the_error_is_reported():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 30, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.randn(30, 2, generator=generator, dtype=torch.float64)
    targets += 4 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    layer, ridges = nn.Linear(30, 2), [1e-6, 1e-2, 0.5, 100.0]
    first, second = split_moments(layer, inputs, targets)
    errors, held_out = {}, targets[40:]
    for ridge in ridges:
        x, y = (part[:40] - part[:40].mean(0) for part in (inputs, targets))
        variance = x.square().mean()
        weight = torch.linalg.solve(x.T @ x / 40 + ridge * variance * torch.eye(30), x.T @ y / 40)
        outputs = (inputs[40:] - inputs[:40].mean(0)) @ weight + targets[:40].mean(0)
        error = (outputs - held_out).square().sum()
        errors[ridge] = (error / (held_out - held_out.mean(0)).square().sum()).item()
    solution = solve(first, second, num_outputs=2, ridges=ridges)
    assert solution.ridge == min(errors, key=errors.__getitem__)
    # Otherwise, a solver that always takes the first or the last ridge would pass this test.
    assert solution.ridge not in (1e-6, 100.0)
    assert solution.relative_error == pytest.approx(errors[solution.ridge])


@pytest.mark.parametrize("name", ["plain", "linear"])
def test_a_batch_norm_after_a_solved_layer_keeps_its_outputs_and_has_their_statistics(name):
    true_layer, features = make_layer_and_features(name)
    targets = true_layer(features).detach() + torch.randn(1, dtype=torch.float64)
    solution = solve(*split_moments(true_layer, features, targets), num_outputs=len(true_layer.bias))
    norm = (nn.BatchNorm2d if name == "plain" else nn.BatchNorm1d)(len(true_layer.bias)).double()
    layer = LAYERS[name][0]().double()
    apply_solution(solution, layer, norm)
    torch.testing.assert_close(norm.eval()(layer(features)), targets, atol=1e-6, rtol=1e-6)
    before = layer(features).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(norm.running_mean, before.mean(0))
    torch.testing.assert_close(norm.running_var, before.var(0, unbiased=False))


def test_moments_of_sampled_positions_equal_those_of_the_sampled_rows():
    layer, features = make_layer_and_features("grouped", images=8)
    targets = torch.randn(8, 6, 6, 6, dtype=torch.float64)
    positions = sample_positions(torch.rand(8), 36, 5)
    sampled = layer_moments(layer, features, targets, positions)
    assert len(sampled) == 2
    for group, moments in enumerate(sampled):
        rows = [
            torch.cat(
                [
                    extract_patches(layer, features)[i, p, group],
                    targets[i, 3 * group : 3 * group + 3].flatten(1)[:, p],
                ]
            )
            for i in range(8)
            for p in positions[i].tolist()
        ]
        expected = Moments.of(torch.stack(rows))
        torch.testing.assert_close((moments.mean, moments.scatter), (expected.mean, expected.scatter))
        assert moments.count == 40


def test_only_stages_whose_only_layer_is_the_last_one_are_solvable():
    norm = nn.BatchNorm2d(4)
    conv, linear = nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 2)
    assert find_solvable_layer(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), conv, norm)) == (conv, norm)
    assert find_solvable_layer(nn.Sequential(nn.ReLU(), nn.Flatten(), linear, nn.Dropout(0.0))) == (
        linear,
        None,
    )
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    assert find_solvable_layer(nn.Sequential(nn.ReLU(), depthwise)) == (depthwise, None)
    assert find_solvable_layer(nn.Sequential(conv, norm, nn.ReLU())) is None
    assert find_solvable_layer(nn.Sequential(nn.ReLU(), conv)) is None, "it has no bias"
    assert find_solvable_layer(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), conv, norm)) is None
