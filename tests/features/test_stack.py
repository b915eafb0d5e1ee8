"""Test stacking against a loop over images and channels."""

import numpy as np
import pytest

from ka_ray.features.stack import EMBEDDING, SCORES, TARGETS, feature_column, stack_columns

TAPS, TEACHERS = ["conv1", "fc"], ["low", "high", "third"]
NUM_CLASSES = {"low": 2, "high": 5, "third": 3}


def make_columns(space: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Make random columns of four images; ``space`` has the spatial shape of each tap."""
    rng = np.random.default_rng(0)
    columns = {"image_id": np.arange(4), "label": np.array(list("abca"), dtype=object)}
    for tap in TAPS:
        for channels, teacher in enumerate(TEACHERS, start=2):
            shape = (4, channels, *space[tap])
            columns[feature_column(tap, teacher)] = rng.normal(size=shape).astype(np.float16)
    for score_column in (SCORES, TARGETS):
        for teacher, num_classes in NUM_CLASSES.items():
            scores = rng.normal(size=(4, num_classes)).astype(np.float32)
            columns[feature_column(score_column, teacher)] = scores
    return columns


@pytest.mark.parametrize("teachers", [TEACHERS, TEACHERS[::-1]])
def test_channels_are_stacked_in_the_order_of_the_teachers(teachers):
    columns = make_columns({"conv1": (2, 3), "fc": ()})
    stacked = stack_columns(columns, TAPS, teachers)
    for tap in TAPS:
        for image in range(4):
            expected = []
            for teacher in teachers:
                expected += list(columns[feature_column(tap, teacher)][image])
            np.testing.assert_array_equal(stacked[tap][image], np.stack(expected))
        assert stacked[tap].dtype == np.float16


@pytest.mark.parametrize("teachers", [TEACHERS, TEACHERS[::-1]])
@pytest.mark.parametrize("score_column", [SCORES, TARGETS])
def test_scores_are_stacked_in_the_order_of_the_teachers(teachers, score_column):
    columns = make_columns({"conv1": (2, 3), "fc": ()})
    stacked = stack_columns(columns, TAPS, teachers, scores=score_column)
    assert stacked[SCORES].dtype == np.float16
    for image in range(4):
        expected = [
            np.float16(columns[feature_column(score_column, teacher)][image, column])
            for teacher in teachers
            for column in range(NUM_CLASSES[teacher])
        ]
        assert stacked[SCORES][image].tolist() == expected


def test_scores_are_stacked_by_default_and_targets_on_request():
    columns = make_columns({"conv1": (), "fc": ()})
    by_default, own, over_views = (
        stack_columns(columns, TAPS, TEACHERS, *options)[SCORES] for options in ((), (SCORES,), (TARGETS,))
    )
    np.testing.assert_array_equal(by_default, own)
    assert (own != over_views).any()


def test_scores_are_stacked_without_any_tap():
    stacked = stack_columns(make_columns({"conv1": (), "fc": ()}), [], TEACHERS)
    assert set(stacked) == {"image_id", "label", SCORES}
    assert stacked[SCORES].shape == (4, sum(NUM_CLASSES.values()))


def test_other_columns_are_kept_and_those_of_teachers_replaced():
    columns = make_columns({"conv1": (2, 3), "fc": ()})
    stacked = stack_columns(columns, TAPS, TEACHERS)
    assert set(stacked) == {"image_id", "label", SCORES, *TAPS}
    assert stacked["label"] is columns["label"]


def test_the_descriptive_network_stands_behind_the_teachers_embeddings():
    columns = make_columns({"conv1": (), "fc": ()})
    own = {
        source: np.full((4, width), width, np.float16)
        for source, width in (("descriptive", 2), ("third", 3), ("low", 4), ("high", 5))
    }
    columns |= {feature_column(EMBEDDING, source): part for source, part in own.items()}
    stacked = stack_columns(columns, [], TEACHERS)[EMBEDDING]
    expected = np.concatenate([own[source] for source in (*TEACHERS, "descriptive")], axis=1)
    np.testing.assert_array_equal(stacked, expected)
    del columns["embedding@descriptive"]
    np.testing.assert_array_equal(stack_columns(columns, [], TEACHERS)[EMBEDDING], expected[:, :-2])


def test_without_teachers_all_columns_are_kept():
    columns = {
        name: column for name, column in make_columns({"conv1": (), "fc": ()}).items() if "@" not in name
    }
    stacked = stack_columns(columns, [], [])
    assert stacked.keys() == columns.keys()
    assert all(stacked[name] is columns[name] for name in columns)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_refused_with_its_tap(value):
    columns = make_columns({"conv1": (2, 3), "fc": ()})
    columns[feature_column("fc", "high")][2, 1] = value
    with pytest.raises(ValueError, match=r"tap fc: .*not finite"):
        stack_columns(columns, TAPS, TEACHERS)


def test_a_value_too_large_for_half_precision_is_refused():
    columns = make_columns({"conv1": (), "fc": ()})
    with np.errstate(over="ignore"):
        columns[feature_column("conv1", "low")] = np.full((4, 2), 70_000.0).astype(np.float16)
    with pytest.raises(ValueError, match="tap conv1"):
        stack_columns(columns, TAPS, TEACHERS)


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000.0])
@pytest.mark.parametrize("score_column", [SCORES, TARGETS])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_score_that_half_precision_cannot_hold_is_refused(value, score_column):
    columns = make_columns({"conv1": (), "fc": ()})
    columns[feature_column(score_column, "high")][3, 4] = value
    with pytest.raises(ValueError, match=r"scores: .*not finite"):
        stack_columns(columns, TAPS, TEACHERS, scores=score_column)


def test_every_teacher_and_tap_has_its_own_column():
    names = {feature_column(tap, teacher) for tap in TAPS for teacher in TEACHERS}
    assert len(names) == len(TAPS) * len(TEACHERS)
