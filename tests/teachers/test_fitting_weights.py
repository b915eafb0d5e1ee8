"""Test loading what fits of a checkpoint, as fine-tuning begins."""

import pytest
import torch

from ka_ray.config import TeacherConfig
from ka_ray.errors import InputError
from ka_ray.teachers import build_teacher
from ka_ray.teachers.checkpoint import load_fitting_weights
from ka_ray.teachers.plain import plain_conv_net


def test_all_but_another_last_layer_is_loaded(tmp_path, randomised):
    pretrained, network = randomised(plain_conv_net(7, widths=(4, 6))), plain_conv_net(3, widths=(4, 6))
    head = network.head.weight.clone()
    state = {f"module.{key}": value for key, value in pretrained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "pretrained.pt")
    assert load_fitting_weights(network, tmp_path / "pretrained.pt") == ("head.weight", "head.bias")
    assert torch.equal(network.head.weight, head)
    assert torch.equal(network.conv2.weight, pretrained.conv2.weight)
    assert torch.equal(network.norm1.running_var, pretrained.norm1.running_var)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"has 0 of the network's 14 weights; it lacks conv1.weight"):
        load_fitting_weights(plain_conv_net(3, widths=(4, 6)), tmp_path / "other.pt")


def test_a_teacher_in_training_says_what_is_new(tmp_path):
    torch.save(plain_conv_net(7, widths=(4, 6)).state_dict(), tmp_path / "pretrained.pt")
    config = TeacherConfig(
        name="pets", network="plain", arguments={"widths": [4, 6]}, classes=("a", "b", "c"),
        training={"epochs": 1, "start": tmp_path / "pretrained.pt"},
    )  # fmt: skip
    assert build_teacher(config).note.endswith("pretrained.pt; new are head.weight, head.bias")
