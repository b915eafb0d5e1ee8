"""Test that damaged files of tensors and moments are one message that names the file."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from ka_ray.errors import InputError
from ka_ray.numerics.named_moments import load_moments
from ka_ray.numerics.tensor_file import load_tensors


def with_header(header: object) -> bytes:
    """Return a safetensors file with a header of its own, and eight bytes of data."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        with_header([]),
        with_header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}),
        with_header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors is damaged: "):
        load_tensors(tmp_path / "a.safetensors")


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("count", [torch.zeros(2), None])
def test_moments_without_a_count_or_a_mean_are_damaged(tmp_path, count):
    tensors = {"conv1.count": torch.tensor(3)} if count is None else {"conv1.count": count}
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"m\.safetensors is damaged: "):
        load_moments(tmp_path / "m.safetensors")
