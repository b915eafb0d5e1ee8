"""Test that the architecture of a checkpoint is recognised by its weights, or asked for."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from ka_ray.errors import InputError
from ka_ray.teachers.sources.recognise import recognise_architecture
from ka_ray.teachers.state_dict import FoundWeights

BUILDERS = {
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=7),
    "regnet_y_400mf": lambda: torchvision.models.regnet_y_400mf(num_classes=7),
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=7),
    "timm/convnext_atto": lambda: timm.create_model("convnext_atto", num_classes=7),
    "timm/mobilevit_xxs": lambda: timm.create_model("mobilevit_xxs", num_classes=7),
}


def recognise(state, hints=(), lightning=False):
    return recognise_architecture([FoundWeights(state, lightning=lightning)], hints)


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=pytest.mark.slow) if "mobilevit" in n else n for n in BUILDERS]
)
def test_a_network_is_recognised_with_its_number_of_classes(network):
    found = recognise(BUILDERS[network]().state_dict())
    assert (found.network, found.num_classes) == (network, 7)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net.module."])
def test_prefixes_do_not_matter(prefix):
    state = BUILDERS["squeezenet1_1"]().state_dict()
    assert recognise({prefix + key: value for key, value in state.items()}).network == "squeezenet1_1"


def test_the_network_of_a_lightning_module_is_recognised_beside_its_loss():
    state = {f"backbone.{key}": value for key, value in BUILDERS["squeezenet1_1"]().state_dict().items()}
    found = recognise({**state, "loss.weight": torch.ones(7)}, lightning=True)
    assert found.network == "squeezenet1_1"


def test_old_checkpoints_without_batch_counters_are_recognised():
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    found = recognise(old)
    # timm's resnet18 is the same function; resnetblur18, which blurs, has the same weights but no users.
    assert (found.network, found.equals) == ("resnet18", ("timm/resnet18",))


@pytest.mark.parametrize("aux_logits", [True, False])
def test_auxiliary_heads_are_noticed(aux_logits):
    network = torchvision.models.googlenet(num_classes=7, aux_logits=aux_logits, init_weights=False)
    found = recognise(network.state_dict())
    assert (found.network, found.arguments["aux_logits"]) == ("googlenet", aux_logits)


def test_networks_that_differ_only_in_what_they_compute_are_asked_for(monkeypatch):
    # Comparing with all models takes long.
    few = ["mobilenetv3_small_100", "tf_mobilenetv3_small_100", "tf_mobilenetv3_small_minimal_100"]
    monkeypatch.setattr(timm, "list_models", lambda: few)
    state = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=7).state_dict()
    assert recognise(state).network == "timm/tf_mobilenetv3_small_minimal_100"  # the only one
    state = timm.create_model("tf_mobilenetv3_small_100", num_classes=7).state_dict()
    with pytest.raises(InputError, match=r"fit timm/mobilenetv3_small_100, timm/tf_mobilenetv3_small_100"):
        recognise(state)
    hints = ["cosine", "tf_mobilenetv3_small_100"]
    assert recognise(state, hints).network == "timm/tf_mobilenetv3_small_100"


def test_an_unknown_network_is_not_recognised():
    assert recognise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)).state_dict()) is None
