"""Test building networks by name: built-in, from torchvision and from a factory."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from ka_ray.errors import InputError
from ka_ray.teachers import NETWORKS, build_network
from ka_ray.teachers.outputs import find_scores
from ka_ray.teachers.plain import plain_conv_net


def tiny_net(num_outputs: int = 3) -> nn.Module:
    """Build a small network. The tests use this function as a factory."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, num_outputs))


def returns_no_module() -> str:
    return "no module"


def test_plain_equals_conv_norm_relu_pool_and_a_linear_layer(randomised):
    network = randomised(plain_conv_net(5, widths=(4, 6)))
    images = torch.randn(3, 3, 9, 9)
    features = images
    for i in (1, 2):
        conv, norm = network.get_submodule(f"conv{i}"), network.get_submodule(f"norm{i}")
        features = functional.conv2d(features, conv.weight, padding=1)
        shape = (1, -1, 1, 1)
        features = (features - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-5).sqrt()
        features = (features * norm.weight.view(shape) + norm.bias.view(shape)).relu()
        features = functional.max_pool2d(features, 2) if i == 1 else features
    expected = features.mean((2, 3)) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 13, 32])
def test_plain_accepts_images_of_any_size(size):
    assert plain_conv_net(5, widths=(2, 3, 4))(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_plain_is_built_by_name_with_classes_and_arguments():
    network = build_network("plain", {"widths": [4, 6]}, num_classes=7)
    assert network.get_submodule("conv2").out_channels == 6
    assert network.get_submodule("head").out_features == 7


def test_a_torchvision_network_is_built_by_name():
    network = build_network("squeezenet1_1", {"dropout": 0.1}, num_classes=4)
    assert isinstance(network, torchvision.models.SqueezeNet)
    assert network.get_submodule("classifier.1").out_channels == 4


def test_a_factory_gets_only_its_own_arguments():
    network = build_network(f"{__name__}:tiny_net", {"num_outputs": 6}, num_classes=99)
    assert network(torch.zeros(1, 3, 4, 4)).shape == (1, 6)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (
            "vgg11bn",
            {},
            r"'vgg11bn' is unknown. Similar names: .*vgg11_bn.*Accepted are plain, .*any torchvision",
        ),
        ("zzzzzz", {}, r"'zzzzzz' is unknown. Similar names: none"),
        ("fcn_resnet50", {}, "unknown"),
        ("plain", {"depth": 3}, r"'plain' cannot be built with arguments .*depth"),
        ("plain", {"widths": [-1]}, r"'plain' cannot be built with arguments"),
        ("alexnet", {"dropout": 7}, r"'alexnet' cannot be built with arguments .*dropout"),
        ("no_such_package:net", {}, "cannot import 'no_such_package'"),
        (":net", {}, "':net'"),
        (".os:system", {}, r"cannot import '\.os'"),
        (f"{__name__}:no_such_net", {}, "no function 'no_such_net'"),
        (f"{__name__}:nn", {}, "no function 'nn'"),
        (f"{__name__}:returns_no_module", {}, "must return a torch.nn.Module, but it returned str"),
        (f"{__name__}:tiny_net", {"width": 3}, "width"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(network, arguments, message):
    with pytest.raises(InputError, match=message):
        build_network(network, arguments, num_classes=3)


TINY = {
    "transformers": {
        "model_type": "resnet",
        "depths": [1, 1, 1, 1],
        "embedding_size": 8,
        "hidden_sizes": [8] * 4,
    }
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_built_in_network_scores_images(network):
    output = build_network(network, TINY.get(network, {}), 4)(torch.zeros(2, 3, 16, 16))
    assert find_scores(output, 4).shape == (2, 4)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ("timm/resnet_18", {}, r"'timm/resnet_18': timm has no such model. Similar: .*resnet18"),
        ("timm/resnet18", {"pretrained": True}, "the argument 'pretrained' is not allowed"),
        ("timm/resnet18", {"checkpoint_path": "a.pt"}, "the argument 'checkpoint_path' is not allowed"),
        ("timm/resnet18", {"model_name": "resnet34"}, "the argument 'model_name' is not allowed"),
        ("timm.models:resnet18", {"pretrained": True}, "the argument 'pretrained' is not allowed"),
        ("timm:create_model", {"model_name": "hf-hub:somebody/net"}, "timm has no such model"),
        ("timm:create_model", {"model_name": "resnet18", "checkpoint_path": "a.pt"}, "'checkpoint_path' is"),
        ("resnet18", {"weights": "DEFAULT"}, "the argument 'weights' is not allowed"),
        ("torchvision.models:resnet18", {"pretrained": True}, "the argument 'pretrained' is not allowed"),
        ("transformers", {"model_type": "bert"}, "'bert' is no image classifier of transformers"),
    ],
)
def test_libraries_build_only_untrained_image_classifiers(network, arguments, message):
    with pytest.raises(InputError, match=message):
        build_network(network, arguments, num_classes=3)


def test_a_timm_name_builds_what_timm_builds():
    import timm

    torch.manual_seed(0)
    network = build_network("timm/resnet18.a1_in1k", {"in_chans": 1}, num_classes=3)
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=3, in_chans=1)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), theirs.parameters(), strict=True))
