"""Checkpoints as training scripts write them: each is loaded, and scores as the network that wrote it."""

import argparse
import copy
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from resnet20 import ResNet20
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from ka_ray.errors import InputError
from ka_ray.teachers.checkpoint import load_checkpoint
from ka_ray.teachers.plain import plain_conv_net


def network(num_classes: int = 3) -> nn.Sequential:
    return plain_conv_net(num_classes, widths=(4, 6))


@pytest.fixture
def trained(randomised) -> nn.Module:
    return randomised(network()).eval()


def assert_same_scores(loaded: nn.Module, expected: nn.Module) -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(images), expected.eval()(images))


def save(content: object, folder: Path) -> Path:
    path = folder / "model_best.pth.tar"
    torch.save(content, path)
    return path


NESTS = ["state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"]


@pytest.mark.parametrize("key", NESTS)
def test_a_nested_state_dict_is_found_beside_optimizer_and_scalars(tmp_path, trained, key):
    optimizer = torch.optim.Adam(trained.parameters())
    functional.cross_entropy(trained(torch.randn(2, 3, 16, 16)), torch.tensor([0, 1])).backward()
    optimizer.step()  # so that the optimizer's state holds tensors under names, as weights are
    content = {"epoch": 3, "optimizer": optimizer.state_dict(), key: trained.state_dict(), "best": 0.5}
    loaded = network()
    assert load_checkpoint(loaded, save(content, tmp_path)) == key
    assert_same_scores(loaded, trained)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "net.", "encoder.backbone."])
def test_a_prefix_that_all_keys_share_is_removed(tmp_path, trained, prefix):
    content = {f"{prefix}{key}": value for key, value in trained.state_dict().items()}
    loaded = network()
    assert load_checkpoint(loaded, save(content, tmp_path)) == f"prefix {prefix!r} removed"
    assert_same_scores(loaded, trained)


@pytest.mark.parametrize(("raw_key", "ema_key"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_a_moving_average_is_preferred_and_named(tmp_path, trained, randomised, raw_key, ema_key):
    averaged = AveragedModel(
        trained
    )  # what torchvision's training script saves: `n_averaged` beside `module.`
    raw = network()
    content = {raw_key: raw.state_dict(), ema_key: averaged.state_dict()}
    loaded = network()
    told = load_checkpoint(loaded, save(content, tmp_path))
    assert told == f"{ema_key}, a moving average of the weights; prefix 'module.' removed"
    assert_same_scores(loaded, trained)


def test_raw_weights_are_taken_if_the_moving_average_does_not_fit(tmp_path, trained):
    content = {"model": trained.state_dict(), "model_ema": {"other": torch.zeros(1)}}
    loaded = network()
    note = "model; the moving average under model_ema does not fit and is not used"
    assert load_checkpoint(loaded, save(content, tmp_path)) == note
    assert_same_scores(loaded, trained)


def test_a_moving_average_is_found_where_its_class_keeps_it(tmp_path, trained):
    content = {"model": network().state_dict(), "ema": {"decay": 0.99, "shadow": trained.state_dict()}}
    loaded = network()
    assert load_checkpoint(loaded, save(content, tmp_path)) == "ema.shadow, a moving average of the weights"
    assert_same_scores(loaded, trained)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_file_of_torchvisions_training_script_is_loaded(tmp_path, trained, legacy):
    content = {
        "model": trained.state_dict(),
        "optimizer": torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9).state_dict(),
        "lr_scheduler": {"last_epoch": 3, "_last_lr": [np.float64(0.01)]},
        "epoch": np.int64(3),
        "args": argparse.Namespace(
            model="resnet18", lr=0.1, amp=False, best=np.float32(0.9), ok=np.bool_(True)
        ),
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = network()
    assert load_checkpoint(loaded, path) == "model"
    assert_same_scores(loaded, trained)


def test_the_file_of_timms_checkpoint_saver_is_loaded(tmp_path, trained, randomised):
    timm_utils = pytest.importorskip("timm.utils")
    raw, ema = network(), timm_utils.ModelEmaV2(trained)
    optimizer = torch.optim.SGD(raw.parameters(), lr=0.1)
    args = argparse.Namespace(model="resnet18", opt="sgd")
    saver = timm_utils.CheckpointSaver(
        raw, optimizer, args, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(3, metric=np.float64(71.5))
    loaded = network()
    told = load_checkpoint(loaded, tmp_path / "model_best.pth.tar")
    assert told == "state_dict_ema, a moving average of the weights"
    assert_same_scores(loaded, trained)


def lightning_content(children: dict[str, nn.Module], **more: torch.Tensor) -> dict[str, object]:
    """What PyTorch Lightning's Trainer saves for a module with these children."""
    state = OrderedDict()
    for child, module in children.items():
        state |= {f"{child}.{key}": value for key, value in module.state_dict().items()}
    return {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state | more,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.001, "name": "resnet18"},
    }


@pytest.mark.parametrize("child", ["model", "net"])
def test_a_lightning_checkpoint_is_loaded(tmp_path, trained, child):
    path = tmp_path / "epoch=9.ckpt"
    torch.save(lightning_content({child: trained}), path)
    loaded = network()
    assert load_checkpoint(loaded, path) == f"state_dict; prefix '{child}.' removed"
    assert_same_scores(loaded, trained)


def test_weights_of_a_loss_beside_the_network_are_left_out_and_named(tmp_path, trained):
    content = lightning_content({"net": trained}, **{"criterion.weight": torch.ones(3)})
    loaded = network()
    told = load_checkpoint(loaded, save(content, tmp_path))
    assert told == "state_dict; prefix 'net.' removed; left out: criterion.weight"
    assert_same_scores(loaded, trained)


def test_two_networks_of_a_lightning_module_are_not_confused(tmp_path, trained, randomised):
    content = lightning_content({"student": trained, "teacher": network()})
    with pytest.raises(InputError, match="children student, teacher have the same"):
        load_checkpoint(network(), save(content, tmp_path))
    content = lightning_content({"model": network(), "ema_model": trained})
    loaded = network()
    load_checkpoint(loaded, save(content, tmp_path))
    assert_same_scores(loaded, trained)


class Wrapped(nn.Module):
    """A user's class that keeps its network in an attribute."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.module(images)
        return scores


@pytest.mark.parametrize("file_has_prefix", [False, True])
@pytest.mark.parametrize("wrap", [Wrapped, nn.DataParallel, torch.compile])
def test_a_wrapper_that_a_factory_returns_is_no_obstacle(tmp_path, trained, wrap, file_has_prefix):
    state = trained.state_dict()
    content = {f"module.{key}": value for key, value in state.items()} if file_has_prefix else state
    target = network()
    load_checkpoint(wrap(target), save(content, tmp_path))
    assert_same_scores(target, trained)


def test_a_wrapper_inside_the_network_is_ignored(tmp_path, trained):
    state = {key.replace("conv1.", "conv1.module."): value for key, value in trained.state_dict().items()}
    assert "conv1.module.weight" in state
    loaded = network()
    told = load_checkpoint(loaded, save({"state_dict": state}, tmp_path))
    assert told == "state_dict; keys matched without the names of wrappers"
    assert_same_scores(loaded, trained)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, trained, dtype):
    content = copy.deepcopy(trained).to(dtype).state_dict()
    loaded = network()
    load_checkpoint(loaded, save(content, tmp_path))
    for key, value in loaded.state_dict().items():
        assert value.dtype == trained.state_dict()[key].dtype
        assert torch.equal(value, content[key].to(value.dtype)), key


# As github.com/akamaster/pytorch_resnet_cifar10 publishes it: saved by torch 0.4 from a DataParallel.
def test_a_published_resnet20_without_batch_counters_is_loaded(tmp_path, randomised):
    source = randomised(ResNet20())
    state = OrderedDict(
        (f"module.{key}", value) for key, value in source.state_dict().items() if "num_batches" not in key
    )
    assert len(source.state_dict()) - len(state) == 19
    loaded = ResNet20()
    path = save({"state_dict": state, "best_prec1": 92.6}, tmp_path)
    assert load_checkpoint(loaded, path) == "state_dict; prefix 'module.' removed"
    assert_same_scores(loaded, source)


def test_whatever_strict_loading_takes_is_taken(tmp_path):
    # torch's attention and torchvision's MLP blocks translate the keys of older versions themselves.
    source = torchvision.models.vit_b_16(image_size=32, num_classes=3)
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in source.state_dict().items()
    }
    loaded = torchvision.models.vit_b_16(image_size=32, num_classes=3)
    load_checkpoint(loaded, save(old, tmp_path))
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_another_number_of_classes_is_said_in_these_words(tmp_path, trained):
    path = save({"state_dict": network(5).state_dict()}, tmp_path)
    with pytest.raises(
        InputError, match=r"it has 5 classes, but the config names 3; keys: head.bias, head.we"
    ):
        load_checkpoint(trained, path, num_classes=3)


def test_a_file_without_state_dict_names_its_keys(tmp_path):
    path = save({"generator": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path)
    with pytest.raises(
        InputError, match=r"a dict with the keys generator, epoch.*state_dict, model_state_dict"
    ):
        load_checkpoint(network(), path)


def test_a_mismatch_is_reported_against_the_closest_prefix(tmp_path, trained):
    state = {f"module.{key}": value for key, value in trained.state_dict().items()}
    state["module.extra"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"keys: 1 unexpected: extra\."):
        load_checkpoint(network(), save(state, tmp_path))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickled_network_is_refused_with_lines_that_convert_it(tmp_path, trained, legacy):
    path = tmp_path / "birds.pt"
    torch.save(trained, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="whole pickled network, not a state dict") as caught:
        load_checkpoint(network(), path)
    run_lines(str(caught.value), tmp_path)
    loaded = network()
    load_checkpoint(loaded, tmp_path / "birds_state_dict.pt")
    assert_same_scores(loaded, trained)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is deprecated, its files are not gone
def test_torchscript_is_refused_with_lines_that_convert_it(tmp_path, trained):
    path = tmp_path / "birds.pt"
    torch.jit.save(torch.jit.trace(trained, torch.zeros(1, 3, 16, 16)), path)
    with pytest.raises(InputError, match="TorchScript program, not a state dict") as caught:
        load_checkpoint(network(), path)
    run_lines(str(caught.value), tmp_path)
    loaded = network()
    load_checkpoint(loaded, tmp_path / "birds_state_dict.pt")
    assert_same_scores(loaded, trained)


def run_lines(message: str, folder: Path) -> None:
    """Run the lines that an error advises, in a folder."""
    lines = message.split(":\n")[1].replace(
        "'birds_state_dict.pt'", repr(str(folder / "birds_state_dict.pt"))
    )
    exec("\n".join(line.strip() for line in lines.splitlines()), {})


def test_onnx_is_refused_with_lines_that_convert_it(tmp_path):
    path = tmp_path / "birds.onnx"
    path.write_bytes(b"\x08\x07")
    with pytest.raises(
        InputError, match=r"an ONNX graph, not a state dict(.|\n)*onnx2torch.convert\('.*birds.onnx'"
    ):
        load_checkpoint(network(), path)


def test_other_types_are_named_and_the_message_has_no_escape_sequences(tmp_path, trained):
    path = save({"state_dict": trained.state_dict(), "folder": Path("data")}, tmp_path)
    with pytest.raises(InputError, match=r"it has objects of the type pathlib\.PosixPath") as caught:
        load_checkpoint(network(), path)
    assert "\x1b" not in str(caught.value)
