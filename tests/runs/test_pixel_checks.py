"""Test that teachers which get other pixels than in their training are named, by their batch norms."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.distributions import Normal, kl_divergence

from ka_ray.config import Config, Preprocessing
from ka_ray.images.views import view_of
from ka_ray.runs.setup import plan_run
from ka_ray.teachers.networks import NETWORKS
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.teachers.preprocess import Preprocess
from ka_ray.teachers.trained_pixels import measure_misfit

TRAINED = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}
RAW = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), rescale=1)
"""The network gets the pixels as they are."""


def test_the_misfit_is_the_median_divergence_of_gaussians():
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.copy_(torch.tensor([10.0, 90.0, 130.0]))
    norm.running_var.copy_(torch.tensor([400.0, 900.0, 2500.0]))
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    channels = images.double().permute(1, 0, 2, 3).reshape(3, -1)
    here = Normal(channels.mean(1), channels.std(1))
    training = Normal(norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt())
    expected = kl_divergence(here, training).median().item()
    assert measure_misfit(nn.Sequential(norm), Preprocess(RAW), images) == pytest.approx(expected, rel=1e-4)
    assert not norm._forward_pre_hooks


def test_the_mean_is_over_batch_norms_and_their_training_images_fit():
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    network = plain_conv_net(5, (8, 8))
    measure_norms(network, Preprocess(Preprocessing())(images))
    assert measure_misfit(network, Preprocess(Preprocessing()), images) < 1e-3
    assert measure_misfit(network, Preprocess(Preprocessing()), images // 4) > 0.5


@pytest.mark.parametrize("norms", [[], [nn.BatchNorm2d(3)], [nn.BatchNorm2d(3, track_running_stats=False)]])
def test_a_network_whose_norms_remember_nothing_is_not_judged(norms):
    network = nn.Sequential(*norms, nn.GroupNorm(1, 3)).eval()
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert measure_misfit(network, Preprocess(Preprocessing()), images) is None


def measure_norms(network, inputs):
    """Let the batch norms of a network remember some inputs."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        network(inputs)
    network.eval()


@pytest.fixture
def plan_pixels(tmp_path):
    """A function that plans a run of two teachers whose training images were resized to 64 pixels.

    Their own images and those of the run are of one kind: blurred noise.
    """
    random = np.random.default_rng(0)
    photos = [random.integers(0, 256, (48, 48, 3), dtype=np.uint8) for _ in range(64)]
    photos = [Image.fromarray(photo).resize((128, 128), Image.Resampling.BICUBIC) for photo in photos]
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(photos[32:]):
        photo.save(tmp_path / "photos" / f"{number}.png")
    trained = Preprocessing.model_validate(TRAINED).resolve(64, "squash")
    views = np.stack([view_of(trained).apply(photo) for photo in photos[:32]])
    teachers = []
    for name in ("low", "high"):
        network = plain_conv_net(2, (16, 32, 32))
        measure_norms(network, Preprocess(trained)(torch.from_numpy(views)))
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
        teachers.append(
            {
                "name": name,
                "network": "plain",
                "arguments": {"widths": [16, 32, 32]},
                "classes": [f"{name}1", f"{name}2"],
                "checkpoint": str(tmp_path / f"{name}.safetensors"),
                "preprocessing": TRAINED,
            }
        )

    def plan(**preprocessing):
        first = teachers[0] | {"preprocessing": preprocessing}
        images = {"source": "folder", "path": str(tmp_path / "photos"), "labelled": False, "size": 64}
        config = {"name": "run", "images": images, "teachers": [first, teachers[1]]}
        return plan_run(Config.model_validate(config)).warnings

    return plan


def test_teachers_with_the_pixels_of_their_training_are_not_named(plan_pixels):
    assert plan_pixels(**TRAINED) == ()


@pytest.mark.parametrize(
    ("given", "advice", "instead"),
    [
        ({**TRAINED, "size": 192}, "{size: 64, crop: 64}", "{size: 192, crop: 192}"),
        ({**TRAINED, "size": 32}, "{size: 64, crop: 64}", "{size: 32, crop: 32}"),
        (
            {"size": 64, "mean": [0.0] * 3, "std": [1.0] * 3},
            "{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}",
            "{mean: [0.0, 0.0, 0.0], std: [1.0, 1.0, 1.0]}",
        ),
        (
            {"size": 64, "mean": [0.0] * 3, "std": [1.0] * 3, "rescale": 1.0},
            "{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], rescale: 0.003922}",
            "{mean: [0.0, 0.0, 0.0], std: [1.0, 1.0, 1.0], rescale: 1}",
        ),
        (
            {"size": 192, "mean": [0.0] * 3, "std": [1.0] * 3},
            "{size: 64, crop: 64, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}",
            "{size: 192, crop: 192, mean: [0.0, 0.0, 0.0], std: [1.0, 1.0, 1.0]}",
        ),
    ],
)
def test_other_pixels_are_named_with_those_of_the_training(plan_pixels, given, advice, instead):
    named = [warning for warning in plan_pixels(**given) if "batch norms" in warning]
    assert [warning.startswith("teacher low: probably gets other pixels") for warning in named] == [True]
    assert f"With {advice}, " in named[0]
    assert f" as with {instead}. " in named[0]
    assert "set teachers.low.preprocessing" in named[0]


def test_a_network_of_one_size_is_asked_about_normalisations_alone(plan_pixels, monkeypatch):
    def build(num_classes, widths):
        network = plain_conv_net(num_classes, widths)
        network.register_forward_pre_hook(refuse)
        return network

    def refuse(network, inputs):
        if inputs[0].shape[-1] != 64:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setitem(NETWORKS, "plain", build)
    [warning] = plan_pixels(size=64, mean=[0.0] * 3, std=[1.0] * 3)
    assert "With {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}, " in warning
