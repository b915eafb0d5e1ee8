"""Test that networks whose channels have another order are found and put back in order."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.student.align import align_channels
from ka_ray.student.channel_groups import find_channel_groups, permute_channels
from ka_ray.teachers.plain import plain_conv_net


class LiteBlock(nn.Module):
    """An inverted residual block."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, hidden, 3, 1, 1, 1, hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class SmallResNet(torchvision.models.ResNet):
    def __init__(self, num_classes: int = 5) -> None:
        block = torchvision.models.resnet.BasicBlock
        super().__init__(block, [1, 1, 1, 1], num_classes=num_classes, width_per_group=64)


def lite() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    blocks = (LiteBlock(8, 24), LiteBlock(8, 24))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def vgg() -> nn.Module:
    features = torchvision.models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True)
    head = (nn.Linear(16 * 16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(4), nn.Flatten(), *head)


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=5)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet": SmallResNet, "lite": lite, "vgg": vgg, "vit": vit}


def random_network(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network in which all channels differ."""
    network = build().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network


def permuted_copy(network: nn.Module) -> nn.Module:
    groups = find_channel_groups(network, torch.zeros(2, 3, 32, 32))
    orders = {
        index: torch.randperm(group.width) for index, group in enumerate(groups.groups) if not group.fixed
    }
    permuted = copy.deepcopy(network)
    permuted.load_state_dict(permute_channels(network.state_dict(), groups, orders))
    return permuted


def same_images(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(images, images) for images in torch.randn(count, 16, 3, 32, 32)]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_gets_its_own_weights_back(name):
    network = random_network(NETWORKS[name])
    other = permuted_copy(network)
    groups = find_channel_groups(network, torch.zeros(2, 3, 32, 32))
    before = copy.deepcopy(other.state_dict())
    alignment = align_channels(network, other, groups, same_images())
    assert other.state_dict().keys() == alignment.state.keys()
    for key, expected in network.state_dict().items():
        assert torch.equal(alignment.state[key], expected), key
        assert torch.equal(other.state_dict()[key], before[key])
    assert any(not torch.equal(before[key], weight) for key, weight in network.state_dict().items())
    assert alignment.correlation_after == pytest.approx(1, abs=1e-2)
    assert alignment.correlation_before < 0.5


def plain_pair() -> tuple[nn.Module, nn.Module]:
    """Two networks from different seeds, with heads of different lengths."""
    return random_network(lambda: plain_conv_net(5, (6, 8))), random_network(
        lambda: plain_conv_net(3, (6, 8))
    )


def test_sums_merged_over_ranks_give_what_one_process_gets():
    reference, other = plain_pair()
    groups = find_channel_groups(reference, torch.zeros(2, 3, 32, 32))
    batches = same_images()
    expected = align_channels(reference, other, groups, batches)
    sent: list[list[Tensor]] = []
    for own in (batches[:2], batches[2:], []):  # the last rank has no batches
        vectors: list[Tensor] = []
        align_channels(reference, other, groups, own, lambda sums, to=vectors: to.append(sums) or sums)
        sent.append(vectors)
    totals: Iterator[Tensor] = (torch.stack(vectors).sum(0) for vectors in zip(*sent, strict=True))
    merged = align_channels(reference, other, groups, [], lambda _: next(totals))
    assert merged.correlation_after == pytest.approx(expected.correlation_after, rel=1e-9)
    for key, weight in expected.state.items():
        assert torch.equal(merged.state[key], weight)


def test_the_matched_correlations_are_those_of_numpy_and_the_best_of_all_orders():
    from itertools import permutations

    import numpy as np

    reference, other = (
        random_network(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 5)))
        for _ in range(2)
    )
    images = torch.randn(12, 3, 5, 5)
    groups = find_channel_groups(reference, images)
    found = align_channels(reference, other, groups, [(images, images)])
    rows = [net[0](images).movedim(1, -1).flatten(0, 2).detach().double() for net in (reference, other)]
    correlation = np.corrcoef(rows[0].T, rows[1].T)[:4, 4:]
    best = max(permutations(range(4)), key=lambda order: sum(correlation[i, j] for i, j in enumerate(order)))
    (order,) = found.orders.values()
    assert tuple(order.tolist()) == best
    assert found.correlation_before == pytest.approx(correlation.diagonal().mean())
    assert found.correlation_after == pytest.approx(np.mean([correlation[i, j] for i, j in enumerate(best)]))


def test_an_aligned_network_computes_the_same_with_a_head_of_another_length():
    reference, other = plain_pair()
    groups = find_channel_groups(reference, torch.zeros(2, 3, 32, 32))
    batches = same_images()
    expected = other(batches[0][0])
    alignment = align_channels(reference, other, groups, batches)
    assert any(not torch.equal(alignment.state[key], weight) for key, weight in other.state_dict().items())
    assert alignment.correlation_after > alignment.correlation_before
    other.load_state_dict(alignment.state)
    torch.testing.assert_close(other(batches[0][0]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("widths", [(6, 9), (6, 8, 8)])
def test_networks_of_different_architectures_are_refused(widths):
    reference, other = random_network(lambda: plain_conv_net(5, (6, 8))), plain_conv_net(5, widths)
    groups = find_channel_groups(reference, torch.zeros(2, 3, 32, 32))
    with pytest.raises(InputError, match="one architecture"):
        align_channels(reference, other, groups, same_images())
