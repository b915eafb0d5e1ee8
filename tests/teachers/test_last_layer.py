"""Test that the last layer of a classifier is found, and that its input is the embedding."""

import pytest
import torch
import torchvision
from torch import nn

from ka_ray.teachers.last_layer import ReadEmbedding, find_last_layer
from ka_ray.teachers.plain import plain_conv_net


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v2", "classifier.1"),
        ("vgg11_bn", "classifier.6"),
        ("vit_b_16", "heads.head"),
    ],
)
def test_the_last_layer_of_published_networks_is_found(name, path):
    sizes = {"image_size": 32, "patch_size": 16} if name == "vit_b_16" else {}
    if name == "vit_b_16":
        network = torchvision.models.VisionTransformer(32, 16, 2, 2, 12, 24, num_classes=7)
    else:
        network = torchvision.models.get_model(name, num_classes=7, **sizes)
    network.eval()
    images = torch.randn(2, 3, 32, 32)
    assert find_last_layer(network, images, 7) == path
    with ReadEmbedding(network, path) as read, torch.no_grad():
        scores = network(images)
    torch.testing.assert_close(network.get_submodule(path)(read.embedding), scores)


def test_the_input_of_a_last_conv_is_averaged_over_positions():
    network = torchvision.models.squeezenet1_1(num_classes=7).eval()
    images, inputs = torch.randn(2, 3, 64, 64), []
    path = find_last_layer(network, images, 7)
    assert path == "classifier.1"
    handle = network.classifier[1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with ReadEmbedding(network, path) as read, torch.no_grad():
        network(images)
    handle.remove()
    torch.testing.assert_close(read.embedding, inputs[0].mean(dim=(2, 3)))


def test_networks_without_a_layer_per_class_have_none():
    images = torch.randn(2, 3, 8, 8)
    assert find_last_layer(plain_conv_net(4, widths=(4, 6)).eval(), images, 5) is None
    shared = nn.Linear(6, 6)
    twice = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), shared, nn.ReLU(), shared)
    assert find_last_layer(twice, images, 6) is None
    assert find_last_layer(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), images, 3) is None
