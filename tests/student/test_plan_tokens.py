"""Test the plans of runs in which transformers and conv networks teach each other."""

from typing import Any

import pytest
import torch

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.student import Student
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import build_teacher

VIT = {"model_name": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
DEIT = VIT | {"model_name": "deit_tiny_distilled_patch16_224"}
SWIN = {
    "model_name": "swin_tiny_patch4_window7_224",
    **{"window_size": 4, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 2]},
}
NETWORKS: dict[str, dict[str, Any]] = {
    # timm's convnext takes images of any size, hence no argument for it.
    "vit": {"network": "timm:create_model", "arguments": VIT | {"img_size": 32}},
    "deit": {"network": "timm:create_model", "arguments": DEIT | {"img_size": 32}},
    "swin": {"network": "timm:create_model", "arguments": SWIN | {"img_size": 32}},
    "convnext": {"network": "timm:create_model", "arguments": {"model_name": "convnext_atto"}},
    "resnet": {"network": "resnet18", "arguments": {}},
    "plain": {"network": "plain", "arguments": {"widths": [16, 32, 48]}},
}
TAPS = {
    # Network -> early and late tap in the config, their paths in the plan, shapes of the features there.
    "vit": (("blocks.0", "blocks.2"), ("blocks.0:prefix=1", "blocks.2:prefix=1"), ((32, 4, 4), (32, 4, 4))),
    "deit": (("blocks.0", "norm"), ("blocks.0:prefix=2", "norm:prefix=2"), ((32, 4, 4), (32, 4, 4))),
    "swin": (("layers.0", "layers.1"), ("layers.0:nhwc", "layers.1:nhwc"), ((16, 8, 8), (32, 4, 4))),
    "convnext": (("stages.0", "stages.1"), ("stages.0", "stages.1"), ((40, 8, 8), (80, 4, 4))),
    "resnet": (("layer1", "layer2"), ("layer1", "layer2"), ((64, 8, 8), (128, 4, 4))),
    "plain": (("conv2", "conv3"), ("conv2", "conv3"), ((32, 16, 16), (48, 8, 8))),
}


def network_of(name: str, num_classes: int) -> dict[str, Any]:
    network = NETWORKS[name]
    own = {"num_classes": num_classes} if ":" in network["network"] else {}
    return network | {"arguments": network["arguments"] | own}


def make_config(teachers: list[str], student: str, **sections: Any) -> Config:
    described = [
        {
            **{"name": f"t{i}", "classes": [f"{name}_{i}_{k}" for k in range(2)], "training": {"epochs": 1}},
            **network_of(name, 2),
        }
        for i, name in enumerate(teachers)
    ]
    taps = {
        tap: {f"t{i}": TAPS[name][0][at] for i, name in enumerate(teachers)}
        | {"student": TAPS[student][0][at]}
        for at, tap in enumerate(("early", "late"))
    }
    tree = {
        "name": "run",
        "images": {"source": "digits", "size": 32},
        "teachers": described,
        "student": network_of(student, 2 * len(teachers)),
        "taps": taps,
    }
    return Config.model_validate(tree | sections)


def plan_of(config: Config) -> Plan:
    return make_plan(config, [build_teacher(teacher) for teacher in config.teachers])


@pytest.mark.parametrize("student", TAPS)
@pytest.mark.parametrize("teachers", [["vit", "swin", "convnext"], ["resnet", "plain", "deit"]])
def test_networks_of_all_kinds_teach_each_other(teachers, student):
    plan = plan_of(make_config(teachers, student))
    for i, name in enumerate(teachers):
        assert tuple(plan.paths[f"t{i}"].values()) == TAPS[name][1]
    for at, tap in enumerate(("early", "late")):
        assert plan.channels[tap] == tuple(TAPS[name][2][at][0] for name in teachers)
        assert (plan.spec.widths[tap], *plan.spaces[tap]) == TAPS[student][2][at]
    assert tuple(plan.spec.paths.values()) == TAPS[student][1]
    rebuilt = Student(plan.spec)
    assert rebuilt.paths == plan.spec.paths
    assert rebuilt(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 2 * len(teachers))


def test_a_class_token_teaches_a_vector_but_no_map():
    late = {"t0": "blocks.2:cls", "t1": "blocks.2:cls"}
    plan = plan_of(
        make_config(["vit", "deit"], "swin", taps={"late": late | {"student": "head.global_pool"}})
    )
    assert plan.shapes == {"late": (64,)}
    with pytest.raises(
        InputError, match=r"taps\.late: teacher t0 has a vector there, but the student has a map"
    ):
        plan_of(make_config(["vit", "deit"], "resnet", taps={"late": late | {"student": "layer2"}}))
    # A map can teach the student's class token: it is averaged.
    taps = {"late": {"t0": "layer2", "t1": "layer2", "student": "blocks:cls"}}
    plan = plan_of(make_config(["resnet", "resnet"], "vit", taps=taps))
    assert plan.shapes == {"late": (256,)}
    assert plan.spec.widths == {"late": 32}


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"t0": "blocks.0:class"}, r"taps\.late: 'blocks\.0:class' ends in ':class'"),
        ({"t0": "patch_embed:cls"}, r"taps\.late: 'patch_embed' of the VisionTransformer .*no class token"),
        ({"t0": "blocks.9:cls"}, r"taps\.late: the network has no module 'blocks\.9'. Similar paths: blocks"),
        ({"t1": "layer1:nhwc:cls"}, r"taps\.late: 'layer1:nhwc:cls' ends in ':nhwc:cls'"),
        ({"student": "layer2:prefix=1"}, r"taps\.late: 'layer2' of the ResNet .*':prefix=1' needs tokens"),
    ],
)
def test_a_tap_that_cannot_be_read_is_refused(taps, message):
    paths = {"t0": "blocks.0", "t1": "layer1", "student": "layer1"} | taps
    with pytest.raises(InputError, match=message):
        plan_of(make_config(["vit", "resnet"], "resnet", taps={"late": paths}))


def test_a_student_takes_paths_and_arguments_only_from_a_teacher_with_the_same_timm_model():
    config = make_config(["swin", "vit"], "vit", taps={"late": {"t0": "layers.1", "t1": "blocks.2"}})
    plan = plan_of(config)
    assert plan.spec.paths == {"late": "blocks.2:prefix=1"}
    assert plan.spec.arguments == NETWORKS["vit"]["arguments"] | {"num_classes": 4}
    config = make_config(["swin", "vit"], "deit", taps={"late": {"t0": "layers.1", "t1": "blocks.2"}})
    with pytest.raises(
        InputError, match=r"taps\.late\.student: is missing; no teacher is a 'timm:create_model'"
    ):
        plan_of(config)
    inheriting = make_config(["vit", "resnet"], "vit").model_dump()
    inheriting["student"] |= {"network": None, "arguments": {"num_classes": 4}}
    assert plan_of(Config.model_validate(inheriting)).spec.arguments == NETWORKS["vit"]["arguments"] | {
        "num_classes": 4
    }


@pytest.mark.parametrize(("student", "expected"), [("vit", True), ("convnext", True), ("resnet", False)])
def test_the_plan_says_whether_the_student_has_layer_norms(student, expected):
    config = make_config([student, student], student)
    assert (
        make_plan(config, [build_teacher(teacher) for teacher in config.teachers]).has_layer_norms is expected
    )
