"""Test the points that `ka-ray tune` tries, its Pareto front (against brute force), and its table."""

import itertools
import json
import random

import pytest

from ka_ray.config import TuneConfig
from ka_ray.errors import InputError
from ka_ray.reports.tune import Trial, TuneResult, choose_trial, pareto_front
from ka_ray.runs.search_space import build_search_space, list_points, trial_key, widths_of_point

CONFIG_WIDTHS, MAX_WIDTHS = {"conv1": 8, "conv2": 16}, {"conv1": 10, "conv2": 64}
SPACE = {"width.conv1": (4, 8), "width.conv2": (8, 16, 32), "ridge": (1e-4, 1e-2)}


def make_trial(agreement: float, parameters: int, key: str = "a") -> Trial:
    return Trial(
        key=key,
        widths={"conv1": parameters, "conv2": 3},
        ridge=None,
        learning_rate=1e-3,
        agreement=agreement,
        parameters=parameters,
        macs=7 * parameters,
        seconds=1.25,
        epochs=2,
        stopped=parameters == 1,
    )


def test_the_search_space_has_multiples_of_the_widths_of_the_config():
    tuned = TuneConfig(factors=(0.5, 1, 2), ridges=(1e-3,), learning_rates=(0.1, 0.2))
    assert build_search_space(tuned, CONFIG_WIDTHS, MAX_WIDTHS) == {
        "width.conv1": (4, 8, 10),  # a code is at most as wide as the stacked features
        "width.conv2": (8, 16, 32),
        "ridge": (1e-3,),
        "learning_rate": (0.1, 0.2),
    }
    from_given_widths = build_search_space(
        TuneConfig(factors=(1,), widths={"conv2": (5, 3)}), CONFIG_WIDTHS, MAX_WIDTHS
    )
    assert from_given_widths == {"width.conv1": (8,), "width.conv2": (3, 5)}


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"conv9": (4,)}, "tune.widths: .*conv9.* have no width to try"),
        ({"conv1": (4, 11)}, r"tune.widths.conv1: \[11\] must lie in 1 ... 10"),
    ],
)
def test_widths_of_unknown_taps_and_too_large_widths_are_refused(widths, message):
    with pytest.raises(InputError, match=message):
        build_search_space(TuneConfig(widths=widths), CONFIG_WIDTHS, MAX_WIDTHS)


def test_a_grid_has_every_combination_once_and_is_refused_beyond_the_trials():
    points = list_points(TuneConfig(algorithm="grid"), SPACE, CONFIG_WIDTHS, seed=0)
    assert len(points) == 12
    assert {tuple(point.values()) for point in points} == set(itertools.product(*SPACE.values()))
    with pytest.raises(InputError, match="2 x 3 x 2 = 12 students, more than 11"):
        list_points(TuneConfig(algorithm="grid", trials=11), SPACE, CONFIG_WIDTHS, seed=0)


@pytest.mark.parametrize("trials", [1, 5, 12, 50])
def test_random_points_are_distinct_and_repeatable_and_start_with_the_config(trials):
    points = list_points(TuneConfig(trials=trials), SPACE, CONFIG_WIDTHS, seed=3)
    assert points == list_points(TuneConfig(trials=trials), SPACE, CONFIG_WIDTHS, seed=3)
    assert len({trial_key(point) for point in points}) == len(points) == min(trials, 12)
    more = list_points(TuneConfig(trials=trials + 3), SPACE, CONFIG_WIDTHS, seed=3)
    assert more[: len(points)] == points  # a search continued with more trials repeats no point
    assert widths_of_point(points[0]) == CONFIG_WIDTHS
    for point in points:
        assert all(point[key] in values for key, values in SPACE.items())


def test_random_points_depend_on_the_seed_and_stay_inside_the_space():
    sets = [
        {trial_key(p) for p in list_points(TuneConfig(trials=4), SPACE, CONFIG_WIDTHS, seed)}
        for seed in range(5)
    ]
    assert len({frozenset(keys) for keys in sets}) > 1
    without_ridge = list_points(
        TuneConfig(trials=6), {"width.conv1": (3, 4), "width.conv2": (8, 16, 32)}, CONFIG_WIDTHS, seed=0
    )
    assert len(without_ridge) == 6


@pytest.mark.parametrize("seed", range(5))
def test_the_pareto_front_equals_that_by_brute_force(seed):
    rng = random.Random(seed)
    trials = [make_trial(rng.choice((0.5, 0.6, 0.7, 0.8)), rng.randrange(1, 9), str(n)) for n in range(12)]

    def is_dominated(trial: Trial) -> bool:
        return any(
            (other.agreement, -other.parameters) != (trial.agreement, -trial.parameters)
            and other.agreement >= trial.agreement
            and other.parameters <= trial.parameters
            for other in trials
        )

    expected = {(trial.agreement, trial.parameters) for trial in trials if not is_dominated(trial)}
    front = pareto_front(trials, "parameters")
    assert {(trial.agreement, trial.parameters) for trial in front} == expected
    assert len(front) == len(expected)
    assert [trial.parameters for trial in front] == sorted(trial.parameters for trial in front)


def test_the_chosen_trial_is_the_best_within_the_budget():
    front = [make_trial(0.5, 10, "x"), make_trial(0.7, 20, "y"), make_trial(0.9, 40, "z")]
    assert choose_trial(front, "parameters", 39) == front[1]
    assert choose_trial(front, "macs", 7 * 40) == front[2]
    assert choose_trial(front, "parameters", 9) is None


@pytest.mark.parametrize("chosen", ["y", None])
def test_markdown_and_json_show_the_same_trials(tmp_path, chosen):
    result = TuneResult(
        name="run",
        cost="parameters",
        budget=30,
        images=200,
        pass_seconds=3.0,
        search_seconds=4.0,
        failed={"p": "broken"},
        trials=[make_trial(0.7, 20, "y"), make_trial(0.6, 25, "n"), make_trial(0.4, 1, "s")],
        front=["s", "y"],
        chosen=chosen,
    )
    result.save(tmp_path)
    assert TuneResult.model_validate(json.loads((tmp_path / "tune.json").read_text())) == result
    text = (tmp_path / "tune.md").read_text()
    front, everything = text.split("## All")
    star = " *" if chosen else ""
    assert f"| 20 3{star} | - | 0.001 | 0.7000 | 20 | 0.00 | 2 | 1.2 |" in front
    assert "| 25 3 |" in everything
    assert "| 25 3 |" not in front
    assert "2 (stopped early)" in front
    assert "in this order: conv1, conv2." in text
    assert "- `p`: broken" in text
    assert ("ka-ray run best.yaml" in text) == (chosen is not None)
    assert ("every one has more than 30 parameters" in text) == (chosen is None)
    assert result.trial("n").parameters == 25
    with pytest.raises(KeyError, match="nothing"):
        result.trial("nothing")
