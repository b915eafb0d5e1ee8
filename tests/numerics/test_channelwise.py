"""A linear layer applied channelwise equals a 1x1 conv."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ka_ray.numerics.channelwise import apply_channelwise
from ka_ray.numerics.memory_format import to_preferred_memory_format


@pytest.mark.parametrize("space", [(4, 5), (1, 1), (7,)])
def test_apply_channelwise_equals_a_1x1_conv_for_maps(space):
    linear = nn.Linear(3, 6).double()
    features = torch.randn(2, 3, *space, dtype=torch.float64)
    conv = functional.conv2d if len(space) == 2 else functional.conv1d
    weight = linear.weight.view(6, 3, *[1] * len(space))
    mapped = apply_channelwise(linear, features)
    torch.testing.assert_close(mapped, conv(features, weight, linear.bias))
    assert mapped.stride() == to_preferred_memory_format(mapped.contiguous()).stride()


def test_apply_channelwise_equals_the_linear_layer_for_vectors():
    linear, vectors = nn.Linear(3, 6), torch.randn(4, 3)
    torch.testing.assert_close(apply_channelwise(linear, vectors), linear(vectors))
