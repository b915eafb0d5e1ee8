"""Test that adapters are 1x1 convs that are initialised as the identity."""

import pytest
import torch
from torch import nn

from ka_ray.student.adapter import Adapter


def make_random_adapter(channels: int) -> Adapter:
    adapter = Adapter(channels)
    nn.init.normal_(adapter.linear.weight)
    nn.init.normal_(adapter.linear.bias)
    return adapter


@pytest.mark.parametrize("shape", [(4, 6), (2, 6, 3, 5)])
def test_a_new_adapter_is_the_identity(shape):
    code = torch.randn(shape)
    assert torch.equal(Adapter(6)(code), code)


def test_an_adapter_is_a_1x1_conv():
    adapter, code = make_random_adapter(6), torch.randn(2, 6, 3, 5)
    weight = adapter.linear.weight[:, :, None, None]
    torch.testing.assert_close(adapter(code), nn.functional.conv2d(code, weight, adapter.linear.bias))
