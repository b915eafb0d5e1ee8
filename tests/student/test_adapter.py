"""Adapters start as the identity and fold exactly."""

import pytest
import torch
from torch import nn

from ka_ray.student.adapter import Adapter, fold

LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 6, 3, padding=1), (2, 3, 7, 7)),
    "strided conv": (lambda: nn.Conv2d(3, 6, 5, stride=2, padding=2), (2, 3, 9, 9)),
    "1x1 conv": (lambda: nn.Conv2d(3, 6, 1), (2, 3, 4, 4)),
    "linear": (lambda: nn.Linear(5, 6), (4, 5)),
}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def random_adapter(channels: int) -> Adapter:
    adapter = Adapter(channels)
    nn.init.normal_(adapter.linear.weight)
    nn.init.normal_(adapter.linear.bias)
    return adapter


@pytest.mark.parametrize("shape", [(4, 6), (2, 6, 3, 5)])
def test_a_new_adapter_is_the_identity(shape):
    code = torch.randn(shape)
    assert torch.equal(Adapter(6)(code), code)


def test_an_adapter_is_a_1x1_conv():
    adapter, code = random_adapter(6), torch.randn(2, 6, 3, 5)
    weight = adapter.linear.weight[:, :, None, None]
    torch.testing.assert_close(adapter(code), nn.functional.conv2d(code, weight, adapter.linear.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_a_folded_layer_gives_what_layer_and_adapter_gave(make, shape, dtype):
    layer, adapter = make().to(dtype), random_adapter(6).to(dtype)
    images = torch.randn(shape, dtype=dtype)
    expected = adapter(layer(images))
    fold(adapter, layer)
    assert layer.weight.dtype == dtype
    assert (layer(images) - expected).abs().max() <= TOLERANCE[dtype]


def test_folding_an_identity_changes_nothing():
    layer = nn.Conv2d(3, 6, 3)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    fold(Adapter(6), layer)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


def test_folding_leaves_the_adapter_as_it_is():
    adapter = random_adapter(6)
    before = adapter.linear.weight.clone()
    fold(adapter, nn.Linear(5, 6))
    assert torch.equal(adapter.linear.weight, before)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 6, 3, bias=False), nn.Linear(5, 6, bias=False)])
def test_a_layer_without_bias_is_refused(layer):
    with pytest.raises(ValueError, match="bias"):
        fold(Adapter(6), layer)
