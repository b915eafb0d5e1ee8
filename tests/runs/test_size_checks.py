"""Test that teachers of one network with images of different sizes are noticed."""

from ka_ray.config import TeacherConfig
from ka_ray.runs.setup import plan_run
from ka_ray.runs.size_checks import compare_sizes


def make_teacher(name, network, **preprocessing):
    return TeacherConfig.model_validate(
        {
            "name": name,
            "network": network,
            "classes": [f"{name}1", f"{name}2"],
            "preprocessing": preprocessing,
            "training": {"epochs": 1},
        }
    )


def test_teachers_of_one_network_with_different_sizes_are_named_with_them():
    teachers = [
        make_teacher("pets", "resnet18", size=96),
        make_teacher("birds", "resnet18", size=256, crop=224),
        make_teacher("cars", "resnet34", size=64),
        make_teacher("trees", "resnet34"),  # the size of the images
    ]
    [warning] = compare_sizes(teachers)
    assert "resnet18, get images of different sizes in pixels: pets 96, birds 224;" in warning
    assert "teachers.NAME.preprocessing.size and .crop" in warning
    assert [*compare_sizes([teachers[0], make_teacher("b", "resnet18", size=96), *teachers[2:]])] == []


def test_a_plan_says_it(load_config):
    assert plan_run(load_config()).warnings == ()
    config = load_config("teachers.0.preprocessing.size=8", "teachers.1.preprocessing.size=16")
    [warning] = plan_run(config, [()]).warnings
    assert "low 8, high 16" in warning
