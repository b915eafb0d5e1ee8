"""Test that every network family has the layers of the network that it is named after."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.features.taps import Taps
from ka_ray.student import FAMILIES, Student, find_family
from ka_ray.student.families import CONNECTORS
from ka_ray.teachers import Preprocess, build_network
from ka_ray.teachers.plain import plain_conv_net

NUM_CLASSES = 4
TORCHVISION = sorted(set(FAMILIES) - {"plain"})


def scale_pixels_to_one() -> Preprocess:
    """Return a preprocessing that only divides the pixels by 255."""
    return Preprocess(Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)))


def original_widths(network: str, **arguments) -> dict[str, int]:
    """Return tap -> width in the original network, with a tap at every layer but the last."""
    return {layer.name: layer.width for layer in find_family(network, arguments)[:-1]}


def with_random_weights(network: nn.Module) -> nn.Module:
    """Give a network on the meta device random weights that keep the scale of its features."""
    network = network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = (6 / module.weight[0].numel()) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.5, 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def folded_layers(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """List (weight, bias) of a network's conv and linear layers, with batch norms folded into them."""
    layers: list[tuple[Tensor, Tensor]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bias = module.bias if module.bias is not None else torch.zeros(len(module.weight))
            layers.append((module.weight.detach(), bias.detach()))
        elif isinstance(module, nn.BatchNorm2d):
            weight, bias = layers.pop()
            factor = module.weight.detach() / (module.running_var + module.eps).sqrt()
            folded = weight * factor[:, None, None, None]
            layers.append((folded, (bias - module.running_mean) * factor + module.bias.detach()))
    return layers


def copy_layers(student: Student, teacher: nn.Module) -> Student:
    """Copy a teacher's folded layers into the student, and remove the student's preprocessing."""
    student_layers = [m for m in student.stages.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer, (weight, bias) in zip(student_layers, folded_layers(teacher), strict=True):
        assert layer.weight.shape == weight.shape
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    student.preprocess = scale_pixels_to_one()
    return student.eval()


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (lambda: plain_conv_net(NUM_CLASSES, widths=(4, 6, 8)), 20),
    "alexnet": (lambda: torchvision.models.alexnet(num_classes=NUM_CLASSES), 127),
    "vgg11_bn": (lambda: torchvision.models.vgg11_bn(num_classes=NUM_CLASSES), 64),
}


@pytest.mark.parametrize("network", CASES)
@torch.no_grad()
def test_a_student_with_the_weights_of_the_teacher_has_the_same_scores(make_spec, network):
    make, size = CASES[network]
    arguments = {"widths": (4, 6, 8)} if network == "plain" else {}
    with torch.device("meta"):
        spec = make_spec(network, original_widths(network, **arguments), image_size=size, **arguments)
        teacher, student = make(), Student(spec)
    teacher = with_random_weights(teacher)
    student = copy_layers(student, teacher)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    expected = teacher(images / 255)
    difference = (student(images) - expected).abs().max()
    assert expected.std(dim=1).min() > 1e-2
    assert difference <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("network", FAMILIES)
@torch.no_grad()
def test_features_at_a_tap_have_the_same_shape_in_teacher_and_student(make_spec, network):
    widths = original_widths(network)
    paths = {layer.name: layer.module_path for layer in find_family(network, {})}
    with torch.device("meta"):
        teacher = build_network(network, {}, NUM_CLASSES).eval()
        student = Student(make_spec(network, widths, image_size=96))
    images = torch.empty(1, 3, 96, 96, device="meta")
    with Taps(teacher, paths) as teacher_taps:
        teacher(images)
    with Taps(student, {name: f"stages.{name}" for name in paths}) as student_taps:
        student(images)
    assert len(teacher_taps.features) == len(paths)
    for name, features in teacher_taps.features.items():
        assert student_taps.features[name].shape == features.shape
        assert features.shape[1] == widths.get(name, NUM_CLASSES)
        assert name == "scores" or student.shapes[name] == features.shape[1:]


@pytest.mark.parametrize("network", FAMILIES)
def test_a_familys_taps_are_batch_norms_or_else_layers_and_no_activations(network):
    with torch.device("meta"):
        teacher = build_network(network, {}, NUM_CLASSES)
    modules = dict(teacher.named_modules())
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in modules.values())
    for layer in find_family(network, {}):
        conv_or_norm = nn.BatchNorm2d if has_norm else nn.Conv2d
        assert isinstance(
            modules[layer.module_path], conv_or_norm if layer.layer_type == "conv" else nn.Linear
        )


@pytest.mark.parametrize("network", TORCHVISION)
def test_a_family_has_all_layers_of_its_torchvision_network(network):
    with torch.device("meta"):
        teacher = build_network(network, {}, NUM_CLASSES)
    layers = [m for m in teacher.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    family = find_family(network, {})
    assert len(family) == len(layers)
    for family_layer, layer in zip(family, layers, strict=True):
        if isinstance(layer, nn.Conv2d):
            conv_args = (layer.kernel_size[0], layer.stride[0], layer.padding[0])
            assert (family_layer.layer_type, family_layer.conv_args) == ("conv", conv_args)


@pytest.mark.parametrize("network", FAMILIES)
def test_layer_names_are_unique_and_connectors_exist(network):
    family = find_family(network, {})
    names = [layer.name for layer in family]
    assert len(set(names)) == len(names)
    assert names[-1] == "scores"
    assert {name for layer in family for name in layer.connectors} <= CONNECTORS.keys()


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ("resnet18", {}, r"'resnet18' is not a family; the families are plain, alexnet"),
        ("plain", {"depth": 3}, r"student\.arguments for 'plain': .*depth"),
        ("alexnet", {"widths": [3]}, r"student\.arguments for 'alexnet'"),
        ("plain", {"widths": 3}, r"student\.arguments for 'plain'"),
    ],
)
def test_an_unknown_family_or_argument_is_refused(network, arguments, message):
    with pytest.raises(InputError, match=message):
        find_family(network, arguments)
