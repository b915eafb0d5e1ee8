"""Test that taps read the features that networks name themselves, and that unclear layouts are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.features.find_layout import resolve_tap_paths
from ka_ray.features.taps import Taps

SIZE = 32


def make_vit(model_name: str = "vit_tiny_patch16_224", **changes: Any) -> nn.Module:
    options = {
        "img_size": SIZE,
        "patch_size": 8,
        "num_classes": 5,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 3,
    }
    return timm.create_model(model_name, **(options | changes))


def make_swin(model_name: str) -> nn.Module:
    layers = {"depths": (1, 1, 2), "embed_dim": 24, "num_heads": (1, 2, 2)}
    return timm.create_model(model_name, img_size=SIZE, window_size=4, num_classes=5, **layers)


TIMM: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    # Name -> function that makes the network, path of its blocks or stages, number of prefix tokens.
    "vit": (make_vit, "blocks", 1),
    "vit without a class token": (lambda: make_vit(class_token=False, global_pool="avg"), "blocks", 0),
    "deit with a distillation token": (lambda: make_vit("deit_tiny_distilled_patch16_224"), "blocks", 2),
    "vit with registers": (lambda: make_vit("vit_small_patch14_reg4_dinov2"), "blocks", 5),
    "vit with registers alone": (lambda: make_vit("vit_medium_patch16_reg4_gap_256"), "blocks", 4),
    "swin": (lambda: make_swin("swin_tiny_patch4_window7_224"), "layers", 0),
    "swin v2": (lambda: make_swin("swinv2_tiny_window8_256"), "layers", 0),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), "stages", 0),
}


def read(network: nn.Module, paths: dict[str, str], images: Tensor) -> dict[str, Tensor]:
    network.eval()
    resolved = resolve_tap_paths(network, paths, images)
    assert resolve_tap_paths(network, resolved, images) == resolved
    with Taps(network, resolved) as taps:
        network(images)
    return taps.features


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_features_equal_those_of_timms_forward_intermediates(randomised, name):
    make, blocks, num_prefix = TIMM[name]
    network, images = randomised(make()).eval(), torch.randn(2, 3, SIZE, SIZE)
    options = {"return_prefix_tokens": True} if num_prefix else {}
    found = network.forward_intermediates(
        images, indices=[1, 2], output_fmt="NCHW", norm=False, intermediates_only=True, **options
    )
    features = read(network, {"1": f"{blocks}.1", "2": f"{blocks}.2"}, images)
    for index, expected in zip(("1", "2"), found, strict=True):
        maps, prefix = expected if num_prefix else (expected, None)
        assert torch.equal(features[index], maps)
        if prefix is not None and name != "vit with registers alone":
            tokens = read(network, {"cls": f"{blocks}.{index}:cls"}, images)
            assert torch.equal(tokens["cls"], prefix[:, 0])


@torch.no_grad()
def test_features_of_torchvisions_transformers_are_maps():
    images = torch.randn(2, 3, SIZE, SIZE)
    vit = torchvision.models.VisionTransformer(SIZE, 8, 2, 3, 24, 48, num_classes=5)
    features = read(vit, {"map": "encoder", "cls": "encoder:cls"}, images)
    assert features["map"].shape == (2, 24, 4, 4)
    # The network computes its scores from the class token.
    torch.testing.assert_close(vit.heads(features["cls"]), vit(images))
    tokens = vit.encoder(torch.cat([vit.class_token.expand(2, -1, -1), vit._process_input(images)], dim=1))
    assert torch.equal(features["map"].flatten(2), tokens[:, 1:].transpose(1, 2))
    swin = torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [1, 2], [4, 4], num_classes=5)
    features = read(swin, {"early": "features.1", "late": "norm", "permuted": "permute"}, images)
    assert features["early"].shape == (2, 24, 8, 8)
    assert torch.equal(features["late"], features["permuted"])
    convnext = torchvision.models.convnext_tiny(num_classes=5)
    features = read(convnext, {"map": "features.1", "inner": "features.1.0.block.3"}, images)
    assert torch.equal(features["map"], convnext.eval().features[:2](images))
    assert features["inner"].shape == (2, 4 * 96, 8, 8)  # a linear layer, with the channels last


@pytest.mark.parametrize(("kind", "num_prefix"), [("ViT", 1), ("DeiT", 2)])
@torch.no_grad()
def test_features_equal_the_hidden_states_of_transformers(kind, num_prefix):
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
    config = getattr(transformers, f"{kind}Config")(**sizes, image_size=SIZE, patch_size=8, num_labels=5)
    network = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    images, name = torch.randn(2, 3, SIZE, SIZE), kind.lower()
    states = network(images, output_hidden_states=True).hidden_states
    features = read(network, {"map": f"{name}.layers.0", "cls": f"{name}.layers.0:cls", "last": name}, images)
    assert torch.equal(features["map"].flatten(2), states[1][:, num_prefix:].transpose(1, 2))
    assert torch.equal(features["cls"], states[1][:, 0])
    # The network as a whole returns several values; the first one is the output of its last layer norm.
    last = getattr(network, name)(images).last_hidden_state
    assert torch.equal(features["last"].flatten(2), last[:, num_prefix:].transpose(1, 2))


class Outputs(nn.Module):
    """A network whose modules turn a map of the image's features into any output."""

    def __init__(self, output: Callable[[Tensor], Any], channels: int = 6, **attributes: Any) -> None:
        super().__init__()
        self.conv, self.tap = nn.Conv2d(3, channels, 4, stride=4), Call(output)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Any:
        if images.shape[-1] != SIZE and getattr(self, "fixed_size", False):
            raise ValueError("wrong size")
        return self.tap(self.conv(images))


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def to_nhwc(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def to_tokens(num_prefix: int) -> Callable[[Tensor], Tensor]:
    """Return a function that makes tokens of 8 x 8 patches and some prefix tokens."""
    return lambda x: torch.cat([x.new_zeros(len(x), num_prefix, x.shape[1]), x.flatten(2).mT], dim=1)


def resolve(network: nn.Module, path: str = "tap") -> str:
    images = torch.randn(2, 3, SIZE, SIZE)
    return resolve_tap_paths(network.eval(), {"late": path}, images)["late"]


@pytest.mark.parametrize(
    ("network", "resolved"),
    [
        (Outputs(lambda x: x), "tap"),
        (Outputs(to_nhwc), "tap:nhwc"),
        # As many channels as rows and columns: 8. Larger images tell the axes apart.
        (Outputs(lambda x: x, 8), "tap"),
        (Outputs(to_nhwc, 8), "tap:nhwc"),
        # If the network accepts no other size, timm's attribute does.
        (Outputs(to_nhwc, 8, fixed_size=True, output_fmt="NHWC"), "tap:nhwc"),
        (Outputs(lambda x: x, 8, fixed_size=True, output_fmt="NCHW"), "tap"),
        # Maps that are not square.
        (Outputs(lambda x: x[:, :, ::2]), "tap"),
        (Outputs(lambda x: to_nhwc(x[:, :, ::2])), "tap:nhwc"),
        (Outputs(lambda x: (x, "other values")), "tap"),
        (Outputs(lambda x: {"hidden": x}), "tap"),
        (Outputs(lambda x: x.mean((2, 3))), "tap"),
        (Outputs(to_tokens(0)), "tap:prefix=0"),
        (Outputs(to_tokens(5)), "tap:prefix=5"),
        (Outputs(to_tokens(3), num_prefix_tokens=3), "tap:prefix=3"),
        (Outputs(to_tokens(0), num_prefix_tokens=1), "tap:prefix=0"),
        (Outputs(to_tokens(7), reg_token=nn.Parameter(torch.zeros(1, 7, 6))), "tap:prefix=7"),
    ],
)
def test_the_layout_becomes_part_of_the_path(network, resolved):
    assert resolve(network) == resolved


@pytest.mark.parametrize(
    ("network", "path", "message"),
    [
        (
            Outputs(to_nhwc, 8, fixed_size=True),
            "tap",
            "not clear whether its channels are first or last.*tap:nchw",
        ),
        (
            Outputs(to_tokens(3)),
            "tap",
            r"67 tokens are a square .*no usual number.*tap:prefix=NUMBER\).*tap:cls",
        ),
        (
            Outputs(lambda x: to_tokens(5)(x[..., :2, :2])),
            "tap",
            r"behind \[0, 5\] prefix .*tap:prefix=0 or tap:pr",
        ),
        (Outputs(to_tokens(0)), "tap:cls", "include no class token; read its patch tokens: tap"),
        (Outputs(to_tokens(4), num_prefix_tokens=4), "tap:cls", "include no class token"),
        (Outputs(to_tokens(1)), "tap:prefix=2", "65 tokens without 2 prefix tokens are no square of patches"),
        (Outputs(to_tokens(1)), "tap:nhwc", "':nhwc' needs a map of 4 dimensions"),
        (Outputs(lambda x: x), "tap:cls", r"':cls' needs tokens \[B, N, C\]"),
        (
            Outputs(lambda x: x.movedim(0, 1)),
            "tap",
            r"\[6, 2, 8, 8\] for 2 image\(s\), but a tap needs a map",
        ),
        (Outputs(lambda x: x[..., None]), "tap", r"\[2, 6, 8, 8, 1\] for 2 image\(s\), but a tap needs"),
        (Outputs(lambda x: {"name": "x"}), "tap", "outputs a dict, but a tap needs a tensor"),
        (Outputs(lambda x: ()), "tap", "outputs a tuple, but a tap needs a tensor"),
    ],
)
def test_a_layout_that_is_unclear_or_impossible_is_refused(network, path, message):
    with pytest.raises(InputError, match=rf"^taps\.late: .*{message}"):
        resolve(network, path)


@pytest.mark.parametrize("rule", [":nchw", ":nhwc"])
def test_the_config_can_say_the_layout(rule):
    assert resolve(Outputs(to_nhwc, 8, fixed_size=True), f"tap{rule}") == f"tap{rule}"
    assert resolve(Outputs(to_tokens(3)), "tap:prefix=3") == "tap:prefix=3"
    assert resolve(Outputs(to_tokens(3)), "tap:cls") == "tap:cls"


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        ("hiera_tiny_224", "blocks.0", "the tokens of a Hiera are not in rows"),
        ("mixer_s32_224", "blocks.0.mlp_tokens", "no usual number of prefix tokens"),
    ],
)
def test_tokens_that_are_no_map_in_rows_are_refused(model, path, message):
    network = timm.create_model(model, num_classes=2).eval()
    with pytest.raises(InputError, match=message):
        resolve_tap_paths(network, {"tap": path}, torch.zeros(1, 3, 224, 224))
