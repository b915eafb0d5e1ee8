"""Test loading of checkpoints in all common forms, and errors for files that do not fit or are unsafe."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ka_ray.errors import InputError
from ka_ray.storage.uris import to_path
from ka_ray.teachers.checkpoint import checkpoint_digest, load_checkpoint, save_weights
from ka_ray.teachers.plain import plain_conv_net


def make_network() -> nn.Sequential:
    return plain_conv_net(3, widths=(4, 6))


@pytest.fixture
def state(randomised):
    return randomised(make_network()).state_dict()


def add_prefix(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "model": lambda state: {"model": state, "epoch": 3},
    "module.": lambda state: add_prefix(state, "module."),
    "_orig_mod.": lambda state: add_prefix(state, "_orig_mod."),
    "both prefixes": lambda state: add_prefix(state, "module._orig_mod."),
    "nested and prefixed": lambda state: {"state_dict": add_prefix(state, "module.")},
}


def assert_has_weights(loaded: nn.Module, state) -> None:
    assert loaded.state_dict().keys() == state.keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("suffix", ["pt", "pth"])
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_a_torch_file_is_loaded_in_any_wrapping(tmp_path, state, wrap, suffix):
    path = tmp_path / f"weights.{suffix}"
    torch.save(wrap(state), path)
    loaded = make_network()
    load_checkpoint(loaded, path)
    assert_has_weights(loaded, state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_are_loaded(tmp_path, state, prefix):
    path = tmp_path / "weights.safetensors"
    save_file(add_prefix(state, prefix), path)
    loaded = make_network()
    load_checkpoint(loaded, path)
    assert_has_weights(loaded, state)


def test_the_legacy_torch_format_is_loaded(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    loaded = make_network()
    load_checkpoint(loaded, path)
    assert_has_weights(loaded, state)


def test_a_prefix_of_only_some_keys_is_kept(tmp_path):
    path = tmp_path / "weights.pt"
    source = nn.ModuleDict({"module": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    torch.save(source.state_dict(), path)
    loaded = nn.ModuleDict({"module": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    assert load_checkpoint(loaded, path) == ""
    assert_has_weights(loaded, source.state_dict())


def test_the_message_about_a_mismatch_lists_missing_unexpected_and_misshapen_keys(tmp_path, state):
    state = dict(state)
    del state["conv1.weight"]
    state["head.weight"] = torch.zeros(5, 6)
    state["extra.bias"] = torch.zeros(1)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    target = make_network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_checkpoint(target, path)
    message = str(caught.value)
    assert str(path) in message
    assert "1 missing: conv1.weight" in message
    assert "1 unexpected: extra.bias" in message
    assert "1 of another shape: head.weight [5, 6] instead of [3, 6]" in message
    assert_has_weights(target, before)


def test_a_long_list_of_keys_is_shortened_in_the_message(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({f"layer{i:02d}": torch.zeros(1) for i in range(20)}, path)
    with pytest.raises(InputError, match=r"20 unexpected: layer00, .*layer05 and 14 more"):
        load_checkpoint(make_network(), path)


class CreatesFileWhenUnpickled:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path, state, save):
    path, created_file = tmp_path / "weights.pt", tmp_path / "created"
    content = {"state_dict": state, "code": CreatesFileWhenUnpickled(created_file)}
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=r"weights\.pt .*not unpickled"):
        load_checkpoint(make_network(), path)
    assert not created_file.exists()


def test_a_pickled_network_is_refused_with_advice(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(make_network(), path)
    with pytest.raises(InputError, match=r"weights\.pt (.|\n)*torch.save\(network.state_dict\(\), "):
        load_checkpoint(make_network(), path)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("kept_share", [0, 0.3, 0.9])
def test_a_truncated_file_is_refused_and_the_message_names_it(tmp_path, state, suffix, kept_share):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(dict(state), path)
    else:
        torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept_share * len(content))])
    with pytest.raises(InputError, match=rf"weights\.{suffix}"):
        load_checkpoint(make_network(), path)


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        torch.zeros(1),
        {"weights": [1, 2]},
        {"model": {"a": 1}},
        {0: torch.zeros(1)},
        {},
    ],
    ids=["list", "tensor", "no tensors", "nested without tensors", "keys that are no strings", "empty"],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=r"weights\.pt contains no state dict"):
        load_checkpoint(make_network(), path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors"):
        load_checkpoint(make_network(), tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_checkpoint_on_s3_is_loaded(s3, state, tmp_path, suffix):
    path = to_path(f"{s3}/teachers/weights.{suffix}")
    if suffix == "pt":
        torch.save(state, tmp_path / "weights.pt")
        path.write_bytes((tmp_path / "weights.pt").read_bytes())
    else:
        source = make_network()
        source.load_state_dict(state)
        save_weights(source, path)
    loaded = make_network()
    load_checkpoint(loaded, path)
    assert_has_weights(loaded, state)
    assert checkpoint_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_or_damaged_checkpoint_on_s3_is_refused_and_the_message_names_its_uri(s3):
    path = to_path(f"{s3}/weights.safetensors")
    with pytest.raises(InputError, match=rf"checkpoint {path} cannot be read"):
        load_checkpoint(make_network(), path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=rf"checkpoint {path} cannot be read"):
        load_checkpoint(make_network(), path)


def test_a_weight_shared_by_two_modules_is_saved_under_both_names(tmp_path):
    network = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    network["b"].weight = network["a"].weight
    save_weights(network, tmp_path / "tied.safetensors")
    saved = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(saved["a.weight"], network["a"].weight)
    assert torch.equal(saved["b.weight"], network["a"].weight)
