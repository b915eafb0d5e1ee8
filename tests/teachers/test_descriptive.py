"""Test that the embedding of a network that is nobody's teacher is found, and what is refused."""

import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from ka_ray.config import DescriptiveConfig
from ka_ray.errors import InputError
from ka_ray.images.views import view_of
from ka_ray.teachers.descriptive import OUTPUT, digest_descriptive, load_descriptive
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.teachers.sources.describe import describe_descriptive

PIXELS = {"size": 32, "resize": "squash", "mean": [0.4] * 3, "std": [0.2] * 3}

FACTORIES = """\
import torch
from torch import nn

def headless(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def with_head(last=nn.Identity):
    torch.manual_seed(0)
    return nn.Sequential(*headless(), nn.Linear(4, 7), last())

def with_softmax():
    return with_head(lambda: nn.Softmax(dim=1))

def random():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))

def maps():
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3)
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads a described section, and its view of an image."""
    (tmp_path / "describing_networks.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "describing_networks", raising=False)

    def load(**section):
        given = DescriptiveConfig.model_validate({"preprocessing": PIXELS, **section})
        config, _ = describe_descriptive(given)
        return load_descriptive(config), view_of(config.preprocessing.resolve(32, "squash"))

    return load


def images():
    return torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def preprocessed():
    return (images().float() / 255 - 0.4) / 0.2


@pytest.mark.parametrize("classes", [7, 0])
def test_the_penultimate_output_of_a_timm_network_with_or_without_a_head(load, tmp_path, randomised, classes):
    network = randomised(timm.create_model("tf_efficientnet_lite0", num_classes=classes))
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "n.pt")
    loaded, view = load(network="timm/tf_efficientnet_lite0", checkpoint=tmp_path / "n.pt")
    assert loaded.num_classes == classes
    path, channels = loaded.find_embedding(view)
    assert (path, channels) == ("classifier" if classes else OUTPUT, 1280)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(preprocessed()), pre_logits=True)
    torch.testing.assert_close(loaded.embed(images(), path), expected, rtol=1e-4, atol=1e-4)


def test_a_torchvision_network_and_a_small_one_of_ours(load, tmp_path, randomised):
    network = randomised(torchvision.models.resnet18(num_classes=3))
    torch.save(network.state_dict(), tmp_path / "r.pt")
    loaded, view = load(network="resnet18", checkpoint=tmp_path / "r.pt")
    assert loaded.find_embedding(view) == ("fc", 512)
    network.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.embed(images(), "fc"), network(preprocessed()), rtol=1e-4, atol=1e-4
        )
    torch.save(plain_conv_net(9, (4, 6)).state_dict(), tmp_path / "p.pt")
    loaded, view = load(network="plain", arguments={"widths": [4, 6]}, checkpoint=tmp_path / "p.pt")
    assert loaded.num_classes == 9


@pytest.mark.parametrize(
    ("factory", "path", "channels"),
    [("headless", OUTPUT, 4), ("with_head", "4", 4), ("with_softmax", "4", 4)],
)
def test_a_factory_may_bring_its_weights_and_a_head_or_none(load, factory, path, channels):
    loaded, view = load(network=f"describing_networks:{factory}")
    assert loaded.find_embedding(view) == (path, channels)
    with torch.no_grad():
        expected = loaded.network[:4](preprocessed())
    torch.testing.assert_close(loaded.embed(images(), path), expected, rtol=1e-4, atol=1e-4)
    assert "its factory makes" in loaded.note


def test_weights_of_a_factory_are_recognised(tmp_path, load):
    digests = [
        digest_descriptive(
            DescriptiveConfig(network="describing_networks:headless", arguments={"seed": seed})
        )
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_factory_of_random_weights_is_refused(load):
    with pytest.raises(InputError, match=r"scores\.descriptive: .*makes other weights at each call"):
        load(network="describing_networks:random")


def test_an_embedding_that_is_not_clear_is_refused(load, tmp_path):
    loaded, view = load(network="describing_networks:maps")
    with pytest.raises(InputError, match=r"scores\.descriptive: the network returns the shape"):
        loaded.find_embedding(view)
    network = timm.create_model("resnet18", num_classes=0, global_pool="")
    torch.save(network.state_dict(), tmp_path / "n.pt")
    arguments = {"num_classes": 0, "global_pool": ""}
    loaded, view = load(network="timm/resnet18", arguments=arguments, checkpoint=tmp_path / "n.pt")
    with pytest.raises(InputError, match="not clear what describes an image"):
        loaded.find_embedding(view)


def test_a_checkpoint_of_another_network_is_refused(load, tmp_path):
    torch.save(plain_conv_net(4, (4, 6)).state_dict(), tmp_path / "p.pt")
    with pytest.raises(InputError, match=r"scores\.descriptive: checkpoint .* does not fit the network"):
        load(network="resnet18", checkpoint=tmp_path / "p.pt")


def test_one_line_says_what_the_network_is(tmp_path, randomised):
    network = randomised(timm.create_model("resnet18", num_classes=11))
    timm.models.save_for_hf(network, tmp_path / "hf")
    config, note = describe_descriptive(DescriptiveConfig.model_validate(str(tmp_path / "hf")))
    assert "descriptive network: a model of timm" in note
    assert "classes" not in note
    loaded = load_descriptive(config)
    assert config.network == "timm/resnet18"
    assert loaded.find_embedding(view_of(config.preprocessing.resolve(32, "squash"))) == ("fc", 512)
    assert DescriptiveConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_source_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"scores\.descriptive: from: .*empty holds neither"):
        describe_descriptive(DescriptiveConfig.model_validate(str(tmp_path / "empty")))
