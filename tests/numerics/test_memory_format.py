"""The layout changes where values stand in memory, never the values, nor their type unless asked."""

import pytest
import torch
from torch import nn

from ka_ray.numerics.memory_format import to_preferred_memory_format

MAPS = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_and_type_stay(dtype):
    given = MAPS.to(dtype)
    assert to_preferred_memory_format(given).dtype == dtype
    assert torch.equal(to_preferred_memory_format(given), given)
    assert to_preferred_memory_format(given, torch.float32).dtype == torch.float32
    assert torch.equal(to_preferred_memory_format(given, torch.float32), given.float())


def test_on_a_cpu_channels_stand_side_by_side_and_layers_take_that_over():
    laid_out = to_preferred_memory_format(MAPS)
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    after = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))(laid_out)
    assert after.is_contiguous(memory_format=torch.channels_last)
    assert to_preferred_memory_format(laid_out).data_ptr() == laid_out.data_ptr()


def test_vectors_and_other_devices_keep_theirs():
    assert to_preferred_memory_format(MAPS[:, :, 0, 0]).shape == (2, 3)
    assert to_preferred_memory_format(MAPS.to("meta")).is_contiguous()
