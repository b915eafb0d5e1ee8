"""Test that errors are found before the output folder is made, so that the corrected config can use it."""

import pytest

import ka_ray
from ka_ray.config import TeachConfig


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["taps={conv1: nowhere}"], "taps.conv1: the network has no module 'nowhere'"),
        (["codes.widths={conv1: 99}"], "codes.widths.conv1: 99 must lie in"),
        (["teachers.0.arguments={widths: [5, 6]}"], "does not fit the network"),
        (["teachers.0.checkpoint=null"], "teachers.low: needs a `checkpoint`, or `training`"),
        (
            ["codes.method=incremental", "codes.widths.conv2=13"],
            "codes.widths.conv2: 13 must lie in 1 ... 12",
        ),
        (["scores.rule=conditional"], "scores.rule is 'conditional'"),
        (["scores.rule=concatenate", "teachers.1.classes.0=digit_1"], "teachers share classes: 'digit_1'"),
        (["student.network=resnet18"], "student.start: no start applies to the student's network 'resnet18'"),
    ],
)
def test_a_run_that_cannot_be_planned_leaves_no_output_folder(load_config, tmp_path, overrides, message):
    config = load_config(*overrides, f"output={tmp_path / 'run'}")
    with pytest.raises(ka_ray.InputError) as error:
        ka_ray.amalgamate(config)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_extended_leaves_no_output_folder(load_config, tmp_path):
    (tmp_path / "before").mkdir()
    config = load_config(f"extend={tmp_path / 'before'}", f"output={tmp_path / 'run'}")
    with pytest.raises(ka_ray.InputError, match=r"before holds no config\.json"):
        ka_ray.amalgamate(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("methods", "vary", "message"),
    [
        (["direct", "best"], [], "--methods: best; there are direct, incremental"),
        ([""], [], "--methods: none given"),
        (["direct"], ["codes.widths.conv1=4,99"], "codes.widths.conv1: 99 must lie in 1 ... 8"),
        (["direct"], ["scores.rule=mean,conditional"], "scores.rule is 'conditional'"),
        (["distill"], ["joint.loss=mse,hinge"], "joint.loss: "),
        (["direct"], ["scores.views=flip"], "--vary 'scores.views=flip'"),
    ],
)
def test_an_invalid_comparison_leaves_no_output_folder(load_config, tmp_path, methods, vary, message):
    config = load_config(f"output={tmp_path / 'run'}")
    with pytest.raises(ka_ray.InputError) as error:
        ka_ray.compare(config, methods, vary=vary)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("seed", "count"), [(0, 0), (2**32 - 1, 2), (5, 2**32)])
def test_a_comparison_past_the_last_seed_leaves_no_output_folder(load_config, tmp_path, seed, count):
    config = load_config(f"output={tmp_path / 'run'}", f"seed={seed}")
    with pytest.raises(ka_ray.InputError, match="--seeds: "):
        ka_ray.compare(config, num_seeds=count)
    assert not (tmp_path / "run").exists()


def test_a_teacher_whose_network_does_not_exist_leaves_no_output_folder(tmp_path):
    teacher = {
        "name": "low",
        "network": "plian",
        "classes": ["digit_0", "digit_1"],
        "training": {"epochs": 1},
    }
    tree = {
        "name": "low",
        "images": {"source": "digits"},
        "teacher": teacher,
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(ka_ray.InputError, match=r"network 'plian' is unknown\. Similar names: plain"):
        ka_ray.teach(TeachConfig.model_validate(tree))
    assert not (tmp_path / "run").exists()
