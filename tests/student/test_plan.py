"""Test the plan of a run, and the errors for runs that cannot be planned."""

import json
from typing import Any

import pytest
import torch

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.images.views import View
from ka_ray.student import Student
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import Teacher, build_network, build_teacher, load_teacher
from ka_ray.teachers.preprocess import Preprocess


def plan_of(config) -> Plan:
    return make_plan(config, [load_teacher(teacher) for teacher in config.teachers])


def plan_untrained_teachers(
    networks: dict[str, tuple[str, dict[str, Any], int]], size: int = 16, **sections: Any
) -> Plan:
    """Plan a run of untrained teachers, whose classes are disjoint.

    Args:
        networks: For each teacher's name, its network, the network's arguments and the number of classes.
        size: Height and width of an image.
        sections: More sections of the config.
    """
    teachers = [
        {
            "name": name,
            "network": network,
            "arguments": arguments,
            "classes": [f"{name}_{i}" for i in range(num_classes)],
            "training": {"epochs": 1},
        }
        for name, (network, arguments, num_classes) in networks.items()
    ]
    tree = {"name": "run", "images": {"source": "digits", "size": size}, "teachers": teachers, **sections}
    config = Config.model_validate(tree)
    return make_plan(config, [build_teacher(teacher) for teacher in config.teachers])


RESNETS = {"cats": ("resnet18", {}, 3), "dogs": ("resnet18", {}, 4)}
PLAIN_AND_RESNET = {"photos": ("plain", {"widths": [4, 6]}, 3), "signs": ("resnet18", {}, 4)}
FIVE_TEACHERS = {f"t{i}": ("plain", {"widths": [3 + i, 5 + 2 * i]}, 2 + i % 3) for i in range(5)}


def test_the_default_plan_has_a_tap_at_every_layer(load_config):
    plan = plan_of(load_config())
    paths = {"conv1": "norm1", "conv2": "norm2"}
    assert plan.paths == {"low": paths, "high": paths}
    assert plan.shapes == {"conv1": (8, 8, 8), "conv2": (12, 4, 4)}
    assert plan.spec.widths == {"conv1": 4, "conv2": 6}
    assert plan.label_sets.classes == plan.spec.classes == tuple(f"digit_{i}" for i in range(10))


def test_the_planned_student_can_be_built_and_scores_images(load_config):
    spec = plan_of(load_config()).spec
    assert Student(spec)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 10)


def test_the_planned_student_gets_the_first_teachers_preprocessing(load_config):
    config = load_config("teachers.0.preprocessing.mean=[0.1, 0.2, 0.3]", "images.resize=crop")
    spec = plan_of(config).spec
    assert spec.preprocessing["mean"] == [0.1, 0.2, 0.3]
    assert spec.view == View("shorter", 8, 8)
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
def test_given_widths_and_taps_are_used_in_the_order_of_the_layers(load_config, overrides, widths):
    plan = plan_of(load_config(*overrides))
    assert list(plan.spec.widths.items()) == list(widths.items())
    assert list(plan.shapes) == list(widths)


def test_codes_can_be_as_wide_as_a_teachers_features(load_config, config_tree):
    config_tree["teachers"][1] |= {"checkpoint": None, "arguments": {"widths": [3, 5]}}
    config = load_config("codes.widths.like=high")
    network = build_network("plain", {"widths": [3, 5]}, 5).eval()
    high = Teacher("high", config.teachers[1].classes, network, Preprocess(config.teachers[1].preprocessing))
    plan = make_plan(config, [load_teacher(config.teachers[0]), high])
    assert plan.spec.widths == {"conv1": 3, "conv2": 5}
    assert plan.shapes == {"conv1": (7, 8, 8), "conv2": (11, 4, 4)}


def test_planned_bytes_per_image_are_those_of_float16_features_and_scores(load_config):
    plan = plan_of(load_config())
    assert plan.feature_bytes == 2 * (8 * 8 * 8 + 12 * 4 * 4)
    assert plan.image_bytes() == 3 * 8 * 8 + 2 * 10


CONFIG_ERRORS = {
    "no such module": (["taps={conv1: norm9}"], [r"taps.conv1", "'norm9'", "Similar paths: ", "norm1"]),
    "no such module in one teacher": (
        ["taps={conv1: {low: norm1, high: layer1}}"],
        ["taps.conv1", "'layer1'"],
    ),
    "tap that is no layer of the student": (
        ["taps={conv1: norm1, conv9: act2}"],
        ["taps", "'conv9'", "'plain'", "'conv1'", "'conv2'"],
    ),
    "tap at the scores": (["taps={scores: head}"], ["taps", "'scores'"]),
    "no taps": (["taps={}", "student.start=random"], ["taps"]),
    "width too large": (["codes.widths.conv1=9"], ["codes.widths.conv1: 9", "1 ... 8"]),
    "width of a missing tap": (["codes.widths.conv3=4"], ["codes.widths", "'conv3'", "'conv1'", "'conv2'"]),
    "unknown network": (
        ["student.network=resent18"],
        ["'resent18' is unknown", "Similar names: ", "resnet18"],
    ),
    "missing path of the student": (
        ["student.network=resnet18", "taps={early: norm1, late: norm2}"],
        ["taps.early.student: ", "'resnet18'"],
    ),
    "a vector where the student has a map": (
        ["taps={conv1: {low: norm1, high: flatten}}"],
        ["taps.conv1", "high", "a vector", "(8, 8)"],
    ),
    "conditional without a shared class": (
        ["scores.rule=conditional"],
        ["scores.rule is 'conditional'", "(low) with (high)", "choose mean or max, or concatenate"],
    ),
    "arguments of another family": (
        ["student.network=alexnet", "student.arguments.widths=[1]", "taps={conv1: norm1}"],
        ["student.arguments", "'alexnet'", "widths"],
    ),
    "teachers of another family": (
        ["student.network=alexnet", "student.start=random"],
        ["taps: name them", "'low'", "'high'"],
    ),
}


@pytest.mark.parametrize(("overrides", "message_parts"), CONFIG_ERRORS.values(), ids=CONFIG_ERRORS.keys())
def test_a_config_whose_run_cannot_be_planned_is_refused(load_config, overrides, message_parts):
    config = load_config(*overrides)
    with pytest.raises(InputError) as caught:
        plan_of(config)
    for part in message_parts:
        assert part in str(caught.value)


SHARED_CLASS = "teachers.1.classes.0=digit_3"


def test_overlapping_label_sets_are_combined_by_the_mean(load_config):
    plan = plan_of(load_config(SHARED_CLASS))
    assert plan.label_sets.rule == plan.spec.rule == "mean"
    assert plan.label_sets.overlap == {"digit_3": ("low", "high")}
    assert plan.spec.classes == tuple(f"digit_{i}" for i in (0, 1, 2, 3, 4, 6, 7, 8, 9))
    assert Student(plan.spec)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 9)


def test_the_image_bytes_include_both_teachers_scores_of_a_shared_class(load_config):
    assert plan_of(load_config(SHARED_CLASS)).image_bytes() == 3 * 8 * 8 + 2 * (5 + 5)


@pytest.mark.parametrize("rule", ["mean", "max", "conditional"])
def test_the_score_rule_of_the_config_is_used(load_config, rule):
    plan = plan_of(load_config(SHARED_CLASS, f"scores.rule={rule}"))
    assert plan.label_sets.rule == plan.spec.rule == rule


def test_disjoint_label_sets_are_concatenated(load_config):
    plan = plan_of(load_config())
    assert plan.label_sets.rule == plan.spec.rule == "concatenate"


def test_overlapping_label_sets_cannot_be_concatenated(load_config):
    with pytest.raises(InputError, match="concatenate") as caught:
        plan_of(load_config(SHARED_CLASS, "scores.rule=concatenate"))
    assert "'digit_3' (low, high)" in str(caught.value)
    assert "choose mean or max" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "shapes"),
    [
        (["taps={conv1: {low: norm1, high: pool1}}"], {"conv1": (8, 8, 8)}),
        (["teachers.1.preprocessing.size=16"], {"conv1": (8, 8, 8), "conv2": (12, 4, 4)}),
        (["teachers.0.preprocessing.size=5"], {"conv1": (8, 5, 5), "conv2": (12, 2, 2)}),
        (["taps={conv2: norm1}"], {"conv2": (8, 4, 4)}),
        (["student.preprocessing.size=16"], {"conv1": (8, 16, 16), "conv2": (12, 8, 8)}),
    ],
    ids=[
        "teachers with different sizes at a tap",
        "size of the second teacher",
        "size of the first teacher",
        "tap at an earlier layer of the teachers",
        "size of the student",
    ],
)
def test_features_of_any_size_are_resized_to_the_students(load_config, overrides, shapes):
    plan = plan_of(load_config(*overrides))
    assert plan.shapes == shapes
    assert plan.spaces == {tap: shape[1:] for tap, shape in shapes.items()}
    student = Student(plan.spec)
    features = student.preprocess(torch.zeros(1, *plan.views.student.shape, dtype=torch.uint8))
    for tap, space in plan.spaces.items():
        features = student.stages[tap](features)
        assert features.shape[2:] == space


@pytest.mark.parametrize("num_teachers", [3, 5])
def test_many_teachers_can_differ_in_widths_and_numbers_of_classes(num_teachers):
    teachers = dict(list(FIVE_TEACHERS.items())[:num_teachers])
    plan = plan_untrained_teachers(teachers)
    widths = [arguments["widths"] for _, arguments, _ in teachers.values()]
    assert plan.channels == {"conv1": tuple(w[0] for w in widths), "conv2": tuple(w[1] for w in widths)}
    assert plan.shapes == {
        "conv1": (sum(w[0] for w in widths), 16, 16),
        "conv2": (sum(w[1] for w in widths), 8, 8),
    }
    assert plan.spec.widths == {"conv1": 3, "conv2": 5}
    num_classes = sum(count for _, _, count in teachers.values())
    assert len(plan.spec.classes) == num_classes
    assert Student(plan.spec)(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, num_classes)


def test_code_shapes_are_unchanged_by_json():
    shapes = plan_untrained_teachers(FIVE_TEACHERS, codes={"widths": {"conv2": 9}}).code_shapes()
    assert shapes == {
        "conv1": {"channels": [3, 4, 5, 6, 7], "paths": ["norm1"] * 5, "space": [16, 16], "width": 3},
        "conv2": {"channels": [5, 7, 9, 11, 13], "paths": ["norm2"] * 5, "space": [8, 8], "width": 9},
    }
    assert json.loads(json.dumps(shapes)) == shapes


@pytest.mark.parametrize(
    ("method", "max_width", "teachers"),
    [
        ("direct", 3 + 4 + 5 + 6 + 7, "all teachers"),
        ("common_features", 3 + 4 + 5 + 6 + 7, "all teachers"),
        ("incremental", 3 + 4, "the first two teachers"),
    ],
)
def test_a_code_wider_than_the_input_of_its_first_auto_encoder_is_refused(method, max_width, teachers):
    plan = plan_untrained_teachers(FIVE_TEACHERS, codes={"method": method, "widths": {"conv1": max_width}})
    assert plan.spec.widths == {"conv1": max_width, "conv2": 5}
    with pytest.raises(InputError) as caught:
        plan_untrained_teachers(FIVE_TEACHERS, codes={"method": method, "widths": {"conv1": max_width + 1}})
    for part in (f"codes.widths.conv1: {max_width + 1} must lie in 1 ... {max_width}", teachers):
        assert part in str(caught.value)


def test_a_torchvision_network_is_cut_at_its_taps_and_keeps_its_widths():
    plan = plan_untrained_teachers(
        RESNETS, size=32, taps={"late": "layer3", "early": "layer1", "stem": "bn1"}
    )
    assert list(plan.spec.widths.items()) == [("stem", 64), ("early", 64), ("late", 256)]
    assert plan.spec.paths == {"stem": "bn1", "early": "layer1", "late": "layer3"}
    assert plan.paths["cats"] == plan.paths["dogs"] == plan.spec.paths
    assert plan.shapes == {"stem": (128, 16, 16), "early": (128, 8, 8), "late": (512, 2, 2)}
    assert plan.kept_adapters == {"early": 64 * 64 + 64, "late": 256 * 256 + 256}
    student = Student(plan.spec)
    network = build_network("resnet18", {}, 7)
    num_parameters = sum(p.numel() for p in network.parameters()) + sum(plan.kept_adapters.values())
    assert sum(p.numel() for p in student.parameters()) == num_parameters
    assert student.eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 7)


def test_a_student_of_a_network_family_keeps_no_adapter(load_config):
    assert plan_of(load_config()).kept_adapters == {}


@pytest.mark.parametrize("widths", [{"early": 64}, {"like": "dogs"}])
def test_the_fixed_widths_of_a_network_can_be_given(widths):
    assert plan_untrained_teachers(
        RESNETS, taps={"early": "layer1"}, codes={"widths": widths}
    ).spec.widths == {"early": 64}


def test_a_student_with_another_network_than_the_teachers_has_its_own_paths():
    taps = {"early": {"photos": "norm1", "signs": "layer1", "student": "norm2"}}
    plan = plan_untrained_teachers(
        PLAIN_AND_RESNET, taps=taps, student={"network": "plain", "arguments": {"widths": [5, 7, 9]}}
    )
    assert plan.paths == {"photos": {"early": "norm1"}, "signs": {"early": "layer1"}}
    assert plan.spec.paths == {"early": "conv2"}
    assert plan.channels == {"early": (4, 64)}
    assert plan.spaces == {"early": (8, 8)}


@pytest.mark.parametrize(
    "student_paths",
    [("conv1", "conv2"), ("norm1", "norm2")],
    ids=["student layers by name", "student layers by module path"],
)
def test_taps_of_plain_and_residual_teachers_are_paired_by_name(student_paths):
    taps = {
        "late": {"photos": "norm2", "signs": "layer3", "student": student_paths[1]},
        "early": {"photos": "norm1", "signs": "layer1", "student": student_paths[0]},
    }
    plan = plan_untrained_teachers(PLAIN_AND_RESNET, taps=taps)
    assert plan.spec.paths == {"early": "conv1", "late": "conv2"}
    assert list(plan.spec.widths.items()) == [("early", 4), ("late", 6)]
    assert plan.paths["signs"] == {"late": "layer3", "early": "layer1"}
    assert plan.shapes == {"early": (4 + 64, 16, 16), "late": (6 + 256, 8, 8)}
    assert plan.kept_adapters == {}


def test_the_students_path_defaults_to_that_of_a_teacher_with_the_same_network():
    taps = {"early": {"photos": "norm1", "signs": "layer1"}}
    by_default = plan_untrained_teachers(PLAIN_AND_RESNET, taps=taps)
    assert (by_default.spec.network, by_default.spec.paths) == ("plain", {"early": "conv1"})
    residual = plan_untrained_teachers(PLAIN_AND_RESNET, taps=taps, student={"network": "resnet18"})
    assert (residual.spec.paths, residual.spec.widths) == ({"early": "layer1"}, {"early": 64})
    assert residual.shapes == {"early": (4 + 64, 4, 4)}


def test_a_map_can_be_paired_with_a_vector_of_the_student():
    taps = {"last": {"cats": "layer4", "dogs": "avgpool", "student": "avgpool"}}
    plan = plan_untrained_teachers(RESNETS, taps=taps)
    assert plan.shapes == {"last": (1024, 1, 1)}


LAYERWISE: dict[str, Any] = {"student": {"start": "random"}}

NETWORK_ERRORS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "no taps": (
        RESNETS,
        LAYERWISE,
        ["taps: name them", "'resnet18'", "conv1", "layer1.0", "layer4", "1 more"],
    ),
    "empty taps": (RESNETS, {"taps": {}} | LAYERWISE, ["taps: name them", "'resnet18'", "layer1"]),
    "inside a residual block": (
        RESNETS,
        {"taps": {"early": "layer1.0.bn1"}},
        ["taps.early: ", "'layer1.0.bn1'", "nearest", "maxpool", "layer1.0,"],
    ),
    "the scores": (RESNETS, {"taps": {"last": "fc"}}, ["taps.last: ", "'fc' returns the scores", "avgpool"]),
    "no such module": (
        RESNETS,
        {"taps": {"early": "layer9"}},
        ["taps.early: ", "'layer9'", "Similar paths: "],
    ),
    "a width that is not the network's": (
        RESNETS,
        {"taps": {"early": "layer1"}, "codes": {"widths": {"early": 32}}},
        ["codes.widths.early: 32", "64 channels", "plain"],
    ),
    "widths of a teacher with another network": (
        PLAIN_AND_RESNET,
        {
            "taps": {"early": {"photos": "norm1", "signs": "layer1"}},
            "codes": {"widths": {"like": "photos"}},
            "student": {"network": "resnet18"},
        },
        ["codes.widths.early: 4", "64 channels"],
    ),
    "a width of a missing tap": (
        RESNETS,
        {"taps": {"early": "layer1"}, "codes": {"widths": {"late": 64}}},
        ["codes.widths: ['late'] are not taps", "['early']"],
    ),
    "missing path of the student": (
        PLAIN_AND_RESNET,
        {
            "taps": {"early": {"photos": "norm1", "signs": "layer1"}},
            "student": {"network": "resnet34"},
        },
        ["taps.early.student: is missing", "'resnet34'"],
    ),
    "teachers of different networks": (
        PLAIN_AND_RESNET,
        LAYERWISE,
        ["taps: name them", "['signs']", "'plain'"],
    ),
    "a vector for a map": (
        PLAIN_AND_RESNET,
        {"taps": {"conv1": {"photos": "norm1", "signs": "fc"}}},
        ["taps.conv1: teacher signs has a vector", "(16, 16)"],
    ),
    "an image that is too small": (
        {"cats": ("plain", {"widths": [4]}, 2), "dogs": ("plain", {"widths": [4] * 6}, 2)},
        {"taps": {"conv1": "norm1"}},
        ["teacher dogs: the network fails for an image of 16 x 16 pixels"],
    ),
}


@pytest.mark.parametrize(
    ("networks", "sections", "message_parts"), NETWORK_ERRORS.values(), ids=NETWORK_ERRORS.keys()
)
def test_networks_whose_taps_cannot_be_paired_are_refused(networks, sections, message_parts):
    with pytest.raises(InputError) as caught:
        plan_untrained_teachers(networks, **sections)
    for part in message_parts:
        assert part in str(caught.value)


def test_a_wrong_number_of_scores_is_refused(load_config):
    config = load_config()
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    teachers[1].network = build_network("plain", {"widths": [4, 6]}, 7).eval()
    with pytest.raises(InputError, match=r"high: `classes` names 5 classes, but the network outputs \(7,\)"):
        make_plan(config, teachers)


def test_a_tap_at_a_module_that_never_runs_is_refused(load_config):
    config = load_config("taps={conv1: {low: norm1, high: idle}}")
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    teachers[1].network.register_module("idle", torch.nn.ModuleList([torch.nn.Identity()]))
    teachers[1].network.forward = torch.nn.Sequential(*list(teachers[1].network.children())[:-1]).forward
    with pytest.raises(InputError, match=r"taps\.conv1"):
        make_plan(config, teachers)


def test_two_taps_at_one_layer_are_refused(load_config):
    with pytest.raises(InputError, match="taps"):
        plan_of(load_config("taps={early: norm1, late: norm1}"))
