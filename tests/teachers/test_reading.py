"""Test what is read from a teacher for a batch of images, on the CPU and on a GPU."""

import numpy as np
import pytest
import torch
from torch import nn

from ka_ray.config import Preprocessing, ScoresConfig
from ka_ray.numerics.host_copies import to_device, to_numpy
from ka_ray.teachers import Teacher
from ka_ray.teachers.preprocess import Preprocess
from ka_ray.teachers.reading import ReadSpec, read_teacher

gpu = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)
devices = pytest.mark.parametrize("device", ["cpu", gpu])


@pytest.fixture
def teacher(monkeypatch) -> Teacher:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*layers, nn.Linear(8, 4)).eval().requires_grad_(False)
    return Teacher("t", tuple("abcd"), network, Preprocess(Preprocessing()).eval())


@pytest.fixture
def images() -> np.ndarray:
    array = np.random.default_rng(0).integers(0, 256, (5, 3, 9, 9), dtype=np.uint8)
    array.flags.writeable = False  # as arrays of Ray are
    return array


READING = ReadSpec(
    paths={"t": {"map": "2"}},
    spaces={"map": (7, 7)},
    scores=ScoresConfig(views="flip"),
    last_layers={"t": "5"},
    float32=frozenset({"map"}),
)


@devices
def test_everything_equals_a_plain_forward_pass(teacher, images, device):
    plain = teacher.network, teacher.preprocess(torch.tensor(images)).contiguous()
    features = plain[0][:3](plain[1])
    embedding = plain[0][3:5](features)
    scores = plain[0][5](embedding)
    both = (scores + plain[0](plain[1].flip(-1))) / 2

    found = read_teacher(teacher.to(torch.device(device)), {"image": images}, READING)
    assert found.keys() == {"map@t", "embedding@t", "scores@t", "targets@t"}
    assert found["map@t"].dtype == np.float32
    assert found["embedding@t"].dtype == np.float16
    assert all(array.flags.c_contiguous for array in found.values())
    expected = {"map@t": features, "scores@t": scores, "targets@t": both}
    for column, values in expected.items():
        np.testing.assert_allclose(found[column], values.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["embedding@t"], embedding.numpy(), rtol=2e-3)


@devices
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_rounds_on_a_gpu_alone(teacher, images, device, amp):
    exact = read_teacher(teacher, {"image": images}, READING)
    found = read_teacher(teacher.to(torch.device(device)), {"image": images}, READING, amp)
    assert all(found[column].dtype == exact[column].dtype for column in exact)
    for column in ("scores@t", "targets@t"):
        np.testing.assert_allclose(found[column], exact[column], atol=0.02)
        assert np.array_equal(found[column], exact[column]) == (device == "cpu")


@devices
def test_copies_there_and_back_are_equal(images, device):
    there = to_device(images, torch.device(device))
    assert there.device.type == device
    strided = to_device(np.arange(12, dtype=np.float32).reshape(3, 4).T, torch.device(device))
    found = to_numpy({"images": there.to(memory_format=torch.channels_last), "strided": strided.T})
    assert np.array_equal(found["images"], images)
    assert np.array_equal(found["strided"], np.arange(12, dtype=np.float32).reshape(3, 4))
    assert all(array.flags.c_contiguous for array in found.values())
