"""Test that a network that is cut has its batch norms: in training mode, it computes as the whole network."""

import copy

import pytest
import torch
from torch import nn

from ka_ray.student.cut import cut_into_stages
from ka_ray.teachers import build_network

NETWORKS = {
    "timm/tf_efficientnet_lite0": "blocks.2",
    "timm/densenet121": "features.transition1",
    "timm/mobilenetv3_small_050": "blocks.2",
    "timm/regnety_002": "s2",
    "timm/resnet18": "layer2",
    "resnet18": "layer2",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_trains_its_batch_norms_as_the_whole_one_does(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = build_network(name, {}, 3).train()
    for (
        module
    ) in whole.modules():  # the student drops nothing, so neither may the network it is compared with
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module).__name__ in ("DropPath", "StochasticDepth"):
            module.eval()
    stages = cut_into_stages(copy.deepcopy(whole), {"tap": NETWORKS[name]}).train()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = whole(images)
        found = stages["scores"](stages["tap"](images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    buffers = {key: value for key, value in whole.state_dict().items() if "running_" in key}
    cut = {
        key: value for stage in stages.values() for key, value in stage.state_dict().items() if key in buffers
    }
    assert cut.keys() == buffers.keys()
    for key, value in buffers.items():
        torch.testing.assert_close(cut[key], value, rtol=1e-4, atol=1e-4)
