"""Test mixed precision and compilation of a network in training."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.training.network_call import NetworkCall, check_precision, explain_compile_errors

real_compile = torch.compile
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4)),
    )


def train(network: nn.Module, call: NetworkCall, images: Tensor, steps: int = 30) -> list[float]:
    optimizer, losses = torch.optim.AdamW(network.parameters(), 1e-2), []
    for _ in range(steps):
        scores = call(images)
        assert scores.dtype == torch.float32
        loss = nn.functional.cross_entropy(scores, torch.arange(len(images), device=images.device) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
def test_a_loss_in_bf16_falls_as_in_float32(device):
    images = torch.randn(16, 3, 6, 6, device=device)
    losses = {}
    for amp in ("none", "bf16"):
        network = make_network().to(device)
        losses[amp] = torch.tensor(train(network, NetworkCall(network, amp), images))
        assert all(p.dtype == torch.float32 for p in network.parameters())
    assert losses["bf16"][-1] < 0.5 * losses["bf16"][0]
    torch.testing.assert_close(losses["bf16"], losses["none"], rtol=0, atol=0.05)
    assert not torch.equal(losses["bf16"], losses["none"])


def test_most_layers_run_in_bf16_and_without_mixed_precision_nothing_changes():
    network, images, types = make_network(), torch.randn(4, 3, 6, 6), []
    network[5].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    NetworkCall(network, "bf16")(images)
    assert torch.equal(NetworkCall(network)(images), network(images))
    assert types == [torch.bfloat16, torch.float32, torch.float32]


def test_fp16_without_a_gpu_is_refused_and_the_message_names_the_stage():
    with pytest.raises(InputError, match=r"stage joint, amp: fp16 needs a GPU.* cpu. Set amp: bf16"):
        check_precision("joint", "fp16", torch.device("cpu"))
    for amp, device in (("bf16", "cpu"), ("none", "cpu"), ("fp16", "cuda")):
        check_precision("joint", amp, torch.device(device))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_learns_the_same_and_keeps_its_names(monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", partial(real_compile, backend=backend))
    images, networks = torch.randn(8, 3, 6, 6), (make_network(), make_network())
    plain, compiled = (
        train(network, NetworkCall(network, compile=compile), images, steps=5)
        for network, compile in zip(networks, (False, True), strict=True)
    )
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert networks[0].state_dict().keys() == networks[1].state_dict().keys()


def test_an_error_of_the_compiler_says_what_to_set(monkeypatch):
    def fail(graph, inputs):
        raise OSError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", partial(real_compile, backend=fail))
    network = make_network()
    with (
        pytest.raises(InputError, match=r"stage joint, compile: .*no C\+\+ compiler.*set compile: false"),
        explain_compile_errors("joint"),
    ):
        NetworkCall(network, compile=True)(torch.randn(4, 3, 6, 6))


def test_errors_of_the_network_itself_stay_as_they_are():
    with pytest.raises(ZeroDivisionError), explain_compile_errors("joint"):
        raise ZeroDivisionError
