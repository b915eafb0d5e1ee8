"""The plan: what will be built, and every reason why it cannot be."""

import pytest
import torch

from ka_ray.errors import InputError
from ka_ray.plan import Plan, make_plan
from ka_ray.student import Student
from ka_ray.teachers import Teacher, build_network, load_teacher
from ka_ray.teachers.preprocess import Preprocess


def plan_of(config) -> Plan:
    return make_plan(config, [load_teacher(teacher) for teacher in config.teachers])


def test_the_default_plan_taps_every_layer(load_config):
    plan = plan_of(load_config())
    paths = {"conv1": "norm1", "conv2": "norm2"}
    assert plan.paths == {"low": paths, "high": paths}
    assert plan.shapes == {"conv1": (8, 8, 8), "conv2": (12, 4, 4)}
    assert plan.spec.widths == {"conv1": 4, "conv2": 6}
    assert plan.label_sets.classes == plan.spec.classes == tuple(f"digit_{i}" for i in range(10))


def test_the_planned_student_can_be_built_and_scores(load_config):
    spec = plan_of(load_config()).spec
    assert Student(spec)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 10)


def test_the_planned_student_gets_the_first_teachers_preprocessing(load_config):
    config = load_config("teachers.0.preprocessing.mean=[0.1, 0.2, 0.3]", "images.resize=crop")
    spec = plan_of(config).spec
    assert spec.preprocessing["mean"] == [0.1, 0.2, 0.3]
    assert (spec.image_size, spec.resize) == (8, "crop")
    other = load_config("student.preprocessing.mean=[0.5, 0.5, 0.5]")
    assert plan_of(other).spec.preprocessing["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("overrides", "widths"),
    [
        (["codes.widths.conv1=7"], {"conv1": 7, "conv2": 6}),
        (["codes.widths={conv1: 8, conv2: 12}"], {"conv1": 8, "conv2": 12}),
        (["codes.widths.like=high"], {"conv1": 4, "conv2": 6}),
        (["taps={conv2: norm2}"], {"conv2": 6}),
        (["taps={conv2: norm2, conv1: conv1}"], {"conv1": 4, "conv2": 6}),
    ],
)
def test_widths_and_taps_as_given_in_the_order_of_the_layers(load_config, overrides, widths):
    plan = plan_of(load_config(*overrides))
    assert list(plan.spec.widths.items()) == list(widths.items())
    assert list(plan.shapes) == list(widths)


def test_codes_are_as_wide_as_the_named_teachers_features(load_config, config_tree):
    config_tree["teachers"][1] |= {"checkpoint": None, "arguments": {"widths": [3, 5]}}
    config = load_config("codes.widths.like=high")
    network = build_network("plain", {"widths": [3, 5]}, 5).eval()
    high = Teacher("high", config.teachers[1].classes, network, Preprocess(config.teachers[1].preprocessing))
    plan = make_plan(config, [load_teacher(config.teachers[0]), high])
    assert plan.spec.widths == {"conv1": 3, "conv2": 5}
    assert plan.shapes == {"conv1": (7, 8, 8), "conv2": (11, 4, 4)}


def test_sizes_on_disk_are_those_of_half_precision(load_config):
    plan = plan_of(load_config())
    assert plan.feature_bytes == 2 * (8 * 8 * 8 + 12 * 4 * 4)
    assert plan.image_bytes == 3 * 8 * 8 + 2 * 10


MISTAKES = {
    "no such module": (["taps={conv1: norm9}"], [r"taps.conv1", "'norm9'", "near: ", "norm1"]),
    "no such module in one teacher": (
        ["taps={conv1: {low: norm1, high: layer1}}"],
        ["taps.conv1", "'layer1'"],
    ),
    "no layer of the student": (
        ["taps={conv1: norm1, conv9: norm2}"],
        ["taps", "'conv9'", "'plain'", "'conv1'", "'conv2'"],
    ),
    "the scores are no tap": (["taps={scores: head}"], ["taps", "'scores'"]),
    "no taps": (["taps={}"], ["taps"]),
    "sizes differ between teachers": (
        ["taps={conv1: {low: norm1, high: pool1}}"],
        ["taps.conv1", "height and width", "'low': (4, 8, 8)", "'high': (4, 4, 4)"],
    ),
    "sizes differ by preprocessing": (
        ["teachers.1.preprocessing.size=16"],
        ["taps.conv1", "'low': (4, 8, 8)", "'high': (4, 16, 16)"],
    ),
    "sizes differ from the student's": (
        ["taps={conv2: norm1}"],
        ["taps.conv2", "(4, 4)", "(8, 8)"],
    ),
    "student of another size": (
        ["student.preprocessing.size=16"],
        ["taps.conv1", "(16, 16)", "(8, 8)", "student.preprocessing.size"],
    ),
    "width too large": (["codes.widths.conv1=9"], ["codes.widths.conv1: 9", "1 ... 8"]),
    "width zero": (["codes.widths.conv2=0"], ["codes.widths.conv2: 0", "1 ... 12"]),
    "width of no tap": (["codes.widths.conv3=4"], ["codes.widths", "'conv3'", "'conv1'", "'conv2'"]),
    "unknown family": (["student.network=resnet18"], ["student.network: 'resnet18'", "plain", "vgg16_bn"]),
    "arguments of another family": (
        ["student.network=alexnet", "student.arguments.widths=[1]", "taps={conv1: norm1}"],
        ["student.arguments", "'alexnet'", "widths"],
    ),
    "teachers of another family": (["student.network=alexnet"], ["taps: name them", "'low'", "'high'"]),
}


@pytest.mark.parametrize(("overrides", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_plan_that_cannot_work_is_refused(load_config, overrides, said):
    config = load_config(*overrides)
    with pytest.raises(InputError) as caught:
        plan_of(config)
    for part in said:
        assert part in str(caught.value)


def test_overlapping_label_sets_are_refused(load_config):
    config = load_config("teachers.1.classes.0=digit_3")
    with pytest.raises(InputError, match="'low' and 'high' both name the class 'digit_3'"):
        plan_of(config)


def test_a_wrong_number_of_scores_is_refused(load_config):
    config = load_config()
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    teachers[1].network = build_network("plain", {"widths": [4, 6]}, 7).eval()
    with pytest.raises(InputError, match=r"high: 5 classes named, the network gives \(7,\)"):
        make_plan(config, teachers)


def test_a_module_that_never_runs_is_no_tap(load_config):
    config = load_config("taps={conv1: {low: norm1, high: idle}}")
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    teachers[1].network.register_module("idle", torch.nn.ModuleList([torch.nn.Identity()]))
    teachers[1].network.forward = torch.nn.Sequential(*list(teachers[1].network.children())[:-1]).forward
    with pytest.raises(InputError, match=r"taps\.conv1"):
        make_plan(config, teachers)
