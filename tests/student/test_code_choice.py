"""Test how the codes of a group are compared on held-out images, against regression in numpy."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from ka_ray.numerics.samples import merged_cross_moments
from ka_ray.student import code_choice
from ka_ray.student.channel_codes import ChannelCode, choice_of_channels, list_codes
from ka_ray.student.code_choice import JUDGING_RIDGES, Reader

STACKED, VALUES, OUTPUTS = 6, 3, 4
NETWORKS = cast(Any, SimpleNamespace(encode=lambda node, code, values: code.encode(values)))


def make_reader(seed=0, fitted=400, held=150, noise=0.5):
    """Return a reader of a layer with 3 values of each of 6 channels, and all of its samples."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(STACKED * VALUES, OUTPUTS))
    inputs = rng.normal(size=(fitted + held, STACKED * VALUES)) * np.repeat(
        rng.uniform(0.2, 2, STACKED), VALUES
    )
    inputs += 1.5
    outputs = inputs @ weights + noise * rng.normal(size=(fitted + held, OUTPUTS)) - 2
    x, y = (torch.tensor(values, dtype=torch.float32) for values in (inputs, outputs))
    moments = merged_cross_moments(x[:fitted], y[:fitted], lambda sums: sums)
    return Reader(cast(Any, None), 0, moments, x[fitted:], y[fitted:]), (inputs, outputs, fitted)


def error_by_hand(samples, code, target):
    """Return the held-out error of ridge regression on the code, by numpy."""
    inputs, outputs, fitted = samples
    channels = inputs.reshape(len(inputs), STACKED, VALUES)
    coded = np.einsum("cs,nsk->nck", code.weight.numpy(), channels).reshape(len(inputs), -1)
    targets = outputs if target is None else outputs @ target.weight.numpy().T
    centred, wanted = coded[:fitted] - coded[:fitted].mean(0), targets[:fitted] - targets[:fitted].mean(0)
    covariance = centred.T @ centred / fitted
    held, left = coded[fitted:] - coded[fitted:].mean(0), targets[fitted:] - targets[fitted:].mean(0)
    errors = []
    for ridge in JUDGING_RIDGES:
        penalty = ridge * np.diag(covariance).mean() * np.eye(len(covariance))
        weight = np.linalg.solve(covariance + penalty, centred.T @ wanted / fitted)
        errors.append(((left - held @ weight) ** 2).sum() / (left**2).sum())
    return min(errors)


CODES = {
    "channels": choice_of_channels((1, 2, 5), STACKED),
    "mixed": ChannelCode(torch.tensor(np.random.default_rng(3).normal(size=(2, STACKED)))),
}


@pytest.mark.parametrize("target", [None, choice_of_channels((0, 3), OUTPUTS)], ids=["all outputs", "coded"])
@pytest.mark.parametrize("name", CODES)
def test_the_held_out_error_is_that_of_ridge_regression(name, target):
    reader, samples = make_reader()
    found = reader.held_out_error(NETWORKS, CODES[name], target, lambda sums: sums)
    assert found == pytest.approx(error_by_hand(samples, CODES[name], target), rel=1e-4)


def test_the_error_of_two_ranks_is_that_of_their_samples_together():
    reader, _ = make_reader()
    whole = reader.held_out_error(NETWORKS, CODES["mixed"], None, lambda sums: sums)
    ranks = [
        Reader(reader.output, 0, reader.moments, reader.held_inputs[part], reader.held_outputs[part])
        for part in (slice(0, 40), slice(40, None))
    ]
    merged = list[torch.Tensor]()
    for _ in range(2):  # the second merge needs the result of the first one
        sent = [send_after(one, merged) for one in ranks]
        merged.append(sent[0] + sent[1])
    *errors, total = merged[1].tolist()
    assert min(errors) / total == pytest.approx(whole, rel=1e-6)


def send_after(reader, merged):
    """Return what a rank sends to be merged after it has got the results of earlier merges."""
    sent = list[torch.Tensor]()

    def merge(sums):
        sent.append(sums)
        return merged[len(sent) - 1] if len(sent) <= len(merged) else sums

    reader.held_out_error(NETWORKS, CODES["mixed"], None, merge)
    return sent[len(merged)]


def test_the_code_with_the_least_error_is_chosen():
    reader, _ = make_reader()
    stats = [reader.towards(NETWORKS, None, STACKED)]
    found = list_codes(stats, 3, principal=True)
    assert list(found) == ["principal", "targets", "variance"]
    errors = {name: reader.held_out_error(NETWORKS, code, None, lambda s: s) for name, code in found.items()}
    chosen = code_choice._choose(NETWORKS, [reader], found, {}, lambda sums: sums)
    assert chosen is found[min(errors, key=errors.__getitem__)]


def test_channels_that_explain_noise_lose_against_those_of_large_variance():
    """A few targets, many channels: what is chosen beyond the first ones is chosen for the noise in it."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(260, 4))
    scales = np.linspace(3.0, 0.05, 80)
    inputs = hidden @ rng.normal(size=(4, 80)) * scales + 0.3 * rng.normal(size=(260, 80))
    outputs = hidden[:, :1] + 0.1 * rng.normal(size=(260, 1))
    x, y = (torch.tensor(values, dtype=torch.float32) for values in (inputs, outputs))
    moments = merged_cross_moments(x[:60], y[:60], lambda sums: sums)
    reader = Reader(cast(Any, None), 0, moments, x[60:], y[60:])
    found = list_codes([reader.towards(NETWORKS, None, 80)], 40, principal=False)
    errors = {name: reader.held_out_error(NETWORKS, code, None, lambda s: s) for name, code in found.items()}
    assert errors["variance"] < errors["targets"]


def test_a_principal_code_is_as_large_as_the_channels():
    reader, _ = make_reader()
    code = list_codes([reader.towards(NETWORKS, None, STACKED)], 2, principal=True)["principal"].weight
    blocks = reader.moments.inputs.view(STACKED, VALUES, STACKED, VALUES)
    covariance = blocks.diagonal(dim1=1, dim2=3).mean(dim=2)
    variances = (code @ covariance @ code.T).diagonal()
    assert float(variances.mean()) == pytest.approx(float(covariance.diagonal().mean()), rel=1e-9)


def test_inputs_that_never_vary_tell_nothing():
    reader, _ = make_reader()
    dead = torch.ones_like(reader.held_inputs)
    moments = merged_cross_moments(torch.ones(50, STACKED * VALUES), torch.randn(50, OUTPUTS), lambda s: s)
    silent = Reader(reader.output, 0, moments, dead, reader.held_outputs)
    assert silent.held_out_error(NETWORKS, CODES["channels"], None, lambda sums: sums) == pytest.approx(1)
