"""Test that the memory format changes only the strides, and not the values, and the dtype only on request."""

import pytest
import torch
from torch import nn

from ka_ray.numerics.memory_format import move_network, to_preferred_memory_format

FEATURE_MAPS = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_and_dtype_are_kept(dtype):
    features = FEATURE_MAPS.to(dtype)
    assert to_preferred_memory_format(features).dtype == dtype
    assert torch.equal(to_preferred_memory_format(features), features)
    assert to_preferred_memory_format(features, torch.float32).dtype == torch.float32
    assert torch.equal(to_preferred_memory_format(features, torch.float32), features.float())


def test_feature_maps_on_a_cpu_are_channels_last_and_layers_keep_that_format():
    converted = to_preferred_memory_format(FEATURE_MAPS)
    assert converted.is_contiguous(memory_format=torch.channels_last)
    outputs = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))(converted)
    assert outputs.is_contiguous(memory_format=torch.channels_last)
    assert to_preferred_memory_format(converted).data_ptr() == converted.data_ptr()


def test_maps_on_other_devices_are_channels_last_too_and_vectors_are_contiguous():
    vectors = FEATURE_MAPS[:, :, 0, 0]
    assert not vectors.is_contiguous()
    assert to_preferred_memory_format(vectors).is_contiguous()
    there = to_preferred_memory_format(FEATURE_MAPS.to("meta"))
    assert there.is_contiguous(memory_format=torch.channels_last)


def test_a_network_on_a_cpu_keeps_its_kernels_as_they_are():
    network = nn.Conv2d(3, 6, 3)
    assert move_network(network, torch.device("cpu")) is network
    assert network.weight.is_contiguous()
