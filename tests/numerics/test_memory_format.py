"""The memory format changes only the strides: values stay, and the type unless another one is asked for."""

import pytest
import torch
from torch import nn

from ka_ray.numerics.memory_format import to_preferred_memory_format

MAPS = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_and_type_are_kept(dtype):
    features = MAPS.to(dtype)
    assert to_preferred_memory_format(features).dtype == dtype
    assert torch.equal(to_preferred_memory_format(features), features)
    assert to_preferred_memory_format(features, torch.float32).dtype == torch.float32
    assert torch.equal(to_preferred_memory_format(features, torch.float32), features.float())


def test_on_a_cpu_maps_are_channels_last_and_layers_keep_that():
    converted = to_preferred_memory_format(MAPS)
    assert converted.is_contiguous(memory_format=torch.channels_last)
    after = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))(converted)
    assert after.is_contiguous(memory_format=torch.channels_last)
    assert to_preferred_memory_format(converted).data_ptr() == converted.data_ptr()


def test_vectors_and_other_devices_get_the_contiguous_format():
    assert to_preferred_memory_format(MAPS[:, :, 0, 0]).shape == (2, 3)
    assert to_preferred_memory_format(MAPS.to("meta")).is_contiguous()
