"""Test scores and features of a teacher, and the check before a run."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.config import Preprocessing, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.images.views import View
from ka_ray.teachers import Preprocess, Teacher, load_teacher
from ka_ray.teachers.plain import plain_conv_net

PATHS = {"conv1": "norm1", "conv2": "norm2"}

VIEW = View("squash", 8, 8)


@pytest.fixture
def teacher(randomised) -> Teacher:
    network = randomised(plain_conv_net(3, widths=(4, 6))).requires_grad_(False)
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    return Teacher("low", ("a", "b", "c"), network, Preprocess(preprocessing).eval())


def make_images(size: int = 8) -> Tensor:
    return torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)


def normalise(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    return ((images.movedim(1, -1) / 255 - mean) / std).movedim(-1, 1)


def test_preprocessing_scales_and_normalises(teacher):
    images = make_images()
    torch.testing.assert_close(teacher.preprocess(images), normalise(images))


def test_scores_are_those_of_the_network_without_gradients(teacher):
    images = make_images()
    scores = teacher.scores(images)
    torch.testing.assert_close(scores, teacher.network(normalise(images)))
    assert not scores.requires_grad


def test_features_are_the_outputs_of_the_batch_norms(teacher):
    images = make_images()
    features, scores = teacher.features(images, PATHS)
    network, x = teacher.network, normalise(images)
    first = network.norm1(network.conv1(x))
    second = network.norm2(network.conv2(functional.max_pool2d(first.relu(), 2)))
    torch.testing.assert_close(features["conv1"], first)
    torch.testing.assert_close(features["conv2"], second)
    torch.testing.assert_close(scores, teacher.scores(images))


def test_check_forward_pass_returns_the_shapes_of_one_image(teacher):
    assert teacher.check_forward_pass(VIEW, {**PATHS, "fc": "head"}) == {
        "conv1": (4, 8, 8),
        "conv2": (6, 4, 4),
        "fc": (3,),
    }


class SelectableOutput(nn.Module):
    """Network with a selectable output and with modules that its forward pass does not call."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.attention = nn.MultiheadAttention(3, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor | set[Tensor]:
        tokens = images.flatten(2).permute(2, 0, 1)
        scores = self.attention(tokens, tokens, tokens)[0].mean(0)
        return {"set": {scores}}.get(self.mode, scores)


def make_teacher(network: nn.Module, num_classes: int = 3) -> Teacher:
    classes = tuple(f"class_{i}" for i in range(num_classes))
    return Teacher("odd", classes, network.eval(), Preprocess(Preprocessing()))


def make_tiny_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 4, 1, 1, 4, 4, num_classes=3)


@pytest.mark.parametrize(
    ("make", "size", "paths", "message"),
    [
        (
            lambda: plain_conv_net(3, (4,)),
            8,
            {"conv9": "norm9"},
            r"taps\.conv9: .*'norm9'. Similar paths: .*norm1",
        ),
        (
            lambda: plain_conv_net(4, (4,)),
            8,
            {},
            r"odd: `classes` names 3 classes, but the network outputs \(4,\)",
        ),
        (
            lambda: nn.Conv2d(3, 3, 1),
            8,
            {},
            r"odd: `classes` names 3 classes, but the network outputs \(3, 8, 8\)",
        ),
        (
            lambda: SelectableOutput("set"),
            8,
            {},
            r"odd: the network returns set; expected one of them to be 3 sc",
        ),
        (
            lambda: plain_conv_net(3, (4, 4, 4, 4, 4)),
            8,
            {},
            "odd: the network fails for an image of 8 x 8 pixels: .*`images.size`",
        ),
        (make_tiny_vit, 8, {}, "odd: the network fails for an image of 8 x 8 pixels: .*`images.size`"),
        (
            make_tiny_vit,
            16,
            {"tokens": "encoder.ln"},
            r"taps\.tokens: .*teacher odd outputs the shape \[1, 17, 4\], but a tap needs a map",
        ),
        (
            lambda: SelectableOutput(""),
            8,
            {"pair": "attention"},
            r"taps\.pair: .*outputs the shape \[64, 1, 3\], but a tap needs a map",
        ),
        (
            lambda: SelectableOutput(""),
            8,
            {"idle": "unused"},
            r"taps\.idle: .*teacher odd never calls the module 'unused'",
        ),
    ],
    ids=[
        "no such tap",
        "number of scores",
        "map of scores",
        "set of scores",
        "image too small",
        "image of another size (assertion)",
        "tap that is neither a map nor a vector",
        "tap that returns a tuple of images and positions in the wrong order",
        "tap at a module that is never called",
    ],
)
def test_check_forward_pass_refuses_unusable_teachers_and_taps(make, size, paths, message):
    with pytest.raises(InputError, match=message):
        make_teacher(make()).check_forward_pass(View("squash", size, size), paths)


def test_tokens_become_maps_and_vectors():
    teacher = make_teacher(make_tiny_vit())
    view = View("squash", 16, 16)
    paths = teacher.resolve_paths(view, {"map": "encoder.ln", "cls": "encoder.ln:cls", "stem": "conv_proj"})
    assert paths == {"map": "encoder.ln:prefix=1", "cls": "encoder.ln:cls", "stem": "conv_proj"}
    assert teacher.check_forward_pass(view, paths) == {"map": (4, 4, 4), "cls": (4,), "stem": (4, 4, 4)}


def test_resolve_paths_names_the_teacher_whose_network_fails():
    with pytest.raises(InputError, match="teacher odd: the network fails for an image of 8 x 8 pixels"):
        make_teacher(make_tiny_vit()).resolve_paths(VIEW, {"map": "encoder.ln"})


def test_a_loaded_teacher_is_frozen_and_in_eval_mode(load_config):
    config = load_config().teachers[1]
    teacher = load_teacher(config)
    assert teacher.name == "high"
    assert teacher.classes == config.classes
    assert not any(module.training for module in teacher.network.modules())
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert teacher.check_forward_pass(VIEW, PATHS) == {"conv1": (4, 8, 8), "conv2": (6, 4, 4)}


def test_loading_a_teacher_twice_gives_the_same_scores(load_config):
    config = load_config().teachers[0]
    first, second = load_teacher(config), load_teacher(config)
    images = make_images()
    assert first.scores(images).abs().max() > 0
    assert torch.equal(first.scores(images), second.scores(images))


def test_a_teacher_without_a_checkpoint_cannot_be_loaded(load_config):
    config = load_config("teachers.0.checkpoint=null").teachers[0]
    with pytest.raises(InputError, match=r"teachers\.low: needs a `checkpoint`"):
        load_teacher(config)


def test_a_checkpoint_with_another_number_of_classes_is_refused(load_config):
    config = load_config("teachers.0.classes=[a, b]").teachers[0]
    with pytest.raises(
        InputError, match=r"it has 5 classes, but the config names 2; keys: head\.bias, head\.weight"
    ):
        load_teacher(config)


def test_googlenet_asks_whether_its_training_began_with_pretrained_weights(tmp_path):
    arguments = {"aux_logits": False, "init_weights": False}
    path = tmp_path / "google.pt"
    source = torchvision.models.googlenet(weights=None, num_classes=3, transform_input=True, **arguments)
    torch.save(source.state_dict(), path)
    section = {
        "name": "pets",
        "network": "googlenet",
        "classes": ["a", "b", "c"],
        "checkpoint": str(path),
        "arguments": arguments,
    }
    with pytest.raises(InputError, match=r"teachers\.pets\.arguments\.transform_input: is missing"):
        load_teacher(TeacherConfig.model_validate(section))
    section["arguments"] = arguments | {"transform_input": True}
    teacher = load_teacher(TeacherConfig.model_validate(section))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        expected = source.eval()(teacher.preprocess(images))
    torch.testing.assert_close(teacher.scores(images), expected)
