"""Test what a search over the layers of a network tries, what it refuses, and the config that it writes."""

import pytest
import yaml

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.reports.tune import Trial
from ka_ray.runs.layer_search import list_layer_widths, prepare_layer_search
from ka_ray.runs.search_space import widths_of_point
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.workflows.tune import build_run_config

OWN = {"conv1": 4, "conv2": 6}
"""The widths of the teachers of the config; two of them, so that twice as many are possible."""


def search(config: Config):
    prepared = prepare_layer_search(config)
    assert prepared is not None
    return list_layer_widths(
        prepared, make_plan(prepared, [load_teacher(teacher) for teacher in prepared.teachers])
    )


def test_a_family_is_searched_over_taps_unless_its_student_is_solved(load_config):
    assert prepare_layer_search(load_config()) is None
    assert prepare_layer_search(load_config("student.start=random")) is None
    for override in ("student.start=exact", "student.widths=0.5"):
        prepared = prepare_layer_search(load_config(override))
        assert prepared is not None
        assert prepared.student.start == "exact"
        assert prepared.student.widths in (1.0, 0.5)


def test_one_factor_for_all_groups_comes_before_mixtures(load_config):
    found = search(load_config("student.start=exact", "tune={trials: 5, factors: [0.5, 1, 2]}"))
    assert found.space == {"width.conv1": (2, 4, 8), "width.conv2": (3, 6, 12)}
    assert found.points is not None
    widths = [widths_of_point(point) for point in found.points]
    assert widths[:3] == [OWN, {"conv1": 2, "conv2": 3}, {"conv1": 8, "conv2": 12}]
    assert len({tuple(point.values()) for point in widths}) == 5
    more = search(load_config("student.start=exact", "tune={trials: 7, factors: [0.5, 1, 2]}")).points
    assert more is not None
    assert more[:5] == found.points


def test_the_widths_of_the_config_are_where_a_search_starts(load_config):
    found = search(
        load_config("student.widths={conv2: 8}", "tune={factors: [0.25, 1, 4], widths: {conv1: [3]}}")
    )
    # At least 2 channels, and no more than both teachers together have.
    assert found.space == {"width.conv1": (3,), "width.conv2": (2, 8, 12)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.widths={head: [3]}"], "tune.widths: .'head'. have no width to try; there are .*conv2"),
        (["tune.widths={conv1: [1]}"], r"tune\.widths\.conv1: \[1\] must lie in 2 \.\.\. 8"),
        (["tune.widths={conv1: [9]}"], r"tune\.widths\.conv1: \[9\] must lie in 2 \.\.\. 8"),
        (["tune.ridges=[0.1]"], "tune.ridges: students of this network choose the ridge"),
        (["student.widths={energy: 0.9}"], "student.widths.energy: a search starts from widths"),
        (
            ["student.widths=0.5", "student.start={teacher: low}"],
            "student.start: a search solves its students",
        ),
    ],
)
def test_what_a_search_over_layers_cannot_do_is_refused(load_config, overrides, message):
    with pytest.raises(InputError, match=message):
        search(load_config("student.start=exact", *overrides))


def test_the_run_config_solves_a_student_of_the_widths_of_the_trial(load_config, tmp_path):
    config = prepare_layer_search(load_config("student.start=exact", "codes.method=incremental"))
    assert config is not None
    trial = Trial(key="k", widths={"conv1": 3, "conv2": 9}, ridge=None, learning_rate=0.002, agreement=0.5,
                  parameters=1, macs=1, seconds=1.0, epochs=1)  # fmt: skip
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(build_run_config(config, trial)))
    best = Config.load(tmp_path / "best.yaml")
    assert (best.student.start, best.student.widths) == ("exact", trial.widths)
    assert best.joint.learning_rate == 0.002
    assert "codes" not in best.model_fields_set
    assert make_plan(best, [load_teacher(t) for t in best.teachers]).spec.layer_widths == trial.widths
