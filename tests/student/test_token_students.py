"""Test students whose features are tokens or maps with the channels last: ViT, Swin, ConvNeXt."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.features.layouts import Layout
from ka_ray.student import Student, find_valid_taps, load_student, save_student
from ka_ray.student.adapter import Adapter
from ka_ray.student.cut import cut_into_stages
from ka_ray.student.fold import fold_adapter
from ka_ray.teachers import build_network

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1, 2), "num_heads": (1, 2, 2)}
TORCHVISION_VIT = {
    **{"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
}


def timm_network(name: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    return "timm:create_model", {"model_name": name, "num_classes": 4, **arguments}


STUDENTS: dict[str, tuple[tuple[str, dict[str, Any]], dict[str, str], dict[str, tuple[int, ...]]]] = {
    # Name -> network and arguments, the resolved paths of the taps, the shapes of the features there.
    "vit": (
        timm_network("vit_tiny_patch16_224", **VIT),
        {
            "stem": "patch_embed.proj",
            "patches": "patch_embed:prefix=0",
            "a": "blocks.0:prefix=1",
            "b": "norm:cls",
        },
        {"stem": (24, 4, 4), "patches": (24, 4, 4), "a": (24, 4, 4), "b": (24,)},
    ),
    "vit without a class token": (
        timm_network("vit_tiny_patch16_224", class_token=False, global_pool="avg", **VIT),
        {"a": "blocks.0:prefix=0", "b": "fc_norm"},
        {"a": (24, 4, 4), "b": (24,)},
    ),
    "deit with a distillation token": (
        timm_network("deit_tiny_distilled_patch16_224", **VIT),
        {"a": "blocks.0:prefix=2", "b": "blocks:prefix=2"},
        {"a": (24, 4, 4), "b": (24, 4, 4)},
    ),
    "vit with registers": (
        timm_network("vit_small_patch14_reg4_dinov2", **VIT),
        {"a": "blocks.1:prefix=5"},
        {"a": (24, 4, 4)},
    ),
    "swin": (
        timm_network("swin_tiny_patch4_window7_224", **SWIN),
        {"a": "layers.0:nhwc", "b": "layers.1.downsample.reduction:nhwc", "c": "head.global_pool"},
        {"a": (12, 8, 8), "b": (24, 4, 4), "c": (48,)},
    ),
    "convnext": (
        timm_network("convnext_atto"),
        {"a": "stages.0", "b": "stages.2"},
        {"a": (40, 8, 8), "b": (160, 2, 2)},
    ),
    "torchvision's vit": (
        ("torchvision.models:VisionTransformer", {**TORCHVISION_VIT, "num_classes": 4}),
        {"a": "encoder.layers.encoder_layer_0:prefix=1"},
        {"a": (24, 4, 4)},
    ),
    "torchvision's swin": (("swin_t", {}), {"a": "features.1:nhwc"}, {"a": (96, 8, 8)}),
    "torchvision's convnext": (("convnext_tiny", {}), {"a": "features.3"}, {"a": (192, 4, 4)}),
}
every_student = pytest.mark.parametrize("name", STUDENTS)


@pytest.fixture
def make_student(make_spec):
    """Return a function that makes one of the students, with or without the layouts in its paths."""

    def make(name: str, explicit: bool = True) -> Student:
        (network, arguments), paths, _ = STUDENTS[name]
        if not explicit:
            paths = {
                tap: path if path.endswith(":cls") else path.split(":")[0] for tap, path in paths.items()
            }
        spec = make_spec(network, {}, image_size=32)
        return Student(replace(spec, arguments=arguments, paths=paths))

    return make


def make_images(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


@every_student
@torch.no_grad()
def test_an_untrained_student_equals_its_network(make_student, name):
    student, images = make_student(name).eval(), make_images()
    for key, parameter in student.named_parameters():
        if ".adapter." not in key:  # adapters are identities; torchvision's ViT starts with scores of 0
            parameter.add_(0.05 * torch.randn_like(parameter))
    (network, arguments), *_ = STUDENTS[name]
    original = build_network(network, arguments, 4)
    # The student's weights have the names of the network behind those of the stage.
    state = {key.removeprefix("stages.").partition(".")[2]: v for key, v in student.state_dict().items()}
    state = {key.removeprefix("network."): value for key, value in state.items()}
    original.load_state_dict({key: state[key] for key in original.state_dict()})
    expected = original.eval()(student.preprocess(images))
    assert expected.std() > 1e-3
    torch.testing.assert_close(student(images), expected, rtol=1e-4, atol=1e-5)


@every_student
def test_the_layouts_follow_from_the_network(make_student, name):
    _, paths, shapes = STUDENTS[name]
    student = make_student(name, explicit=False)
    assert student.paths == paths
    assert student.shapes == shapes
    assert make_student(name).layouts == student.layouts


@every_student
def test_all_parameters_get_gradients(make_student, name):
    student = make_student(name).train()
    student(make_images()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_an_adapter_of_tokens_is_a_linear_layer(make_student):
    student = make_student("vit")
    kept = {tap: type(student.stages[tap].adapter) for tap in student.kept_adapters}
    assert kept == {
        "patches": nn.Linear,
        "a": nn.Linear,
        "b": nn.Linear,
    }  # the conv of the stem takes it over
    # A Swin's stages end in a shortcut, in a linear layer without a bias, and in a pooling.
    assert [*make_student("swin").kept_adapters] == ["a", "b", "c"]
    assert make_student("convnext").kept_adapters == {"a": 40 * 41, "b": 160 * 161}
    assert isinstance(make_student("convnext").stages["a"].adapter, nn.Conv2d)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_student_is_loaded_as_it_was_saved(make_student, name, tmp_path):
    student = make_student(name).eval()
    student.spec = replace(student.spec, widths={tap: shape[0] for tap, shape in student.shapes.items()})
    save_student(student, tmp_path)
    loaded, images = load_student(tmp_path), make_images()
    assert loaded.layouts == student.layouts
    assert torch.equal(loaded(images), student(images))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("blocks.0:prefix=3", r"taps\.a: .*17 tokens without 3 prefix tokens are no square"),
        ("blocks.0:nhwc", r"taps\.a: .*':nhwc' needs a map of 4 dimensions"),
        ("patch_embed:cls", r"taps\.a: .*include no class token; read its patch tokens: patch_embed"),
        ("blocks.0:class", r"taps\.a: 'blocks\.0:class' ends in ':class'; after a module path may follow"),
        ("blocks.0.attn:prefix=1", r"taps\.a: the network cannot be cut at 'blocks\.0\.attn', because both"),
    ],
)
def test_a_layout_that_a_stage_does_not_have_is_refused(make_spec, path, message):
    network, arguments = timm_network("vit_tiny_patch16_224", **VIT)
    with pytest.raises(InputError, match=message):
        Student(replace(make_spec(network, {}, image_size=32, **arguments), paths={"a": path}))


@torch.no_grad()
def test_an_adapter_is_folded_into_a_linear_layer_of_tokens():
    stage, adapter = nn.Sequential(nn.GELU(), nn.Linear(4, 6)), Adapter(6)
    adapter.linear.weight.normal_()
    adapter.linear.bias.normal_()
    for shape, layout in {(2, 3, 3, 4): Layout("nhwc"), (2, 10, 4): Layout("patches", 1)}.items():
        output, rest = layout.split(stage(features := torch.randn(shape)))
        expected = layout.join(adapter(output), None if rest is None else adapter.linear(rest))
        folded = copy.deepcopy(stage)
        fold_adapter(adapter, folded)
        torch.testing.assert_close(folded(features), expected)


class DependsOnSize(nn.Module):
    """A block whose forward pass torch.fx cannot trace; it changes its input in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        return self.conv(x) if x.shape[-1] > 1 else x


@torch.no_grad()
def test_a_network_is_cut_around_a_block_that_cannot_be_traced():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), DependsOnSize(4), nn.Sequential(DependsOnSize(4)), nn.Flatten(), nn.Linear(36, 2)
    ).eval()
    assert find_valid_taps(network) == ["0", "1", "2", "3"]
    stages, images = cut_into_stages(network, {"a": "0", "b": "1"}), torch.randn(2, 3, 5, 5)
    first = stages["a"](images)
    before = first.clone()
    second = stages["b"](first)
    assert torch.equal(first, before)  # the stage copies its input
    assert torch.equal(stages["scores"](second), network(images))


def test_a_module_that_returns_several_values_is_no_tap():
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = Backbone(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x).hidden)

    class Backbone(DependsOnSize):
        def __init__(self) -> None:
            super().__init__(4)

        def forward(self, x: Tensor) -> Any:
            if x.sum() > 0:
                x = -x
            return type("Hidden", (), {"hidden": x.mean((2, 3))})

    assert find_valid_taps(Outputs()) == []
    with pytest.raises(InputError, match=r"taps\.a: 'backbone' does not return one tensor"):
        cut_into_stages(Outputs(), {"a": "backbone"})


def test_a_mobilevit_can_be_cut_between_its_blocks(make_spec):
    network = timm.create_model("mobilevit_xxs", num_classes=4)
    assert {"stages.2", "stages.3"} <= set(find_valid_taps(network))
    spec = make_spec(*("timm:create_model", {}), image_size=64, model_name="mobilevit_xxs", num_classes=4)
    student = Student(replace(spec, paths={"a": "stages.2", "b": "stages.3"}))
    assert student.layouts == {"a": Layout(), "b": Layout()}
    assert student.shapes == {"a": (48, 8, 8), "b": (64, 4, 4)}
