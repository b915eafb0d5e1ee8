"""Stacking against a loop over images and channels."""

import numpy as np
import pytest

from ka_ray.features.stack import feature_column, stack_columns

TAPS, TEACHERS = ["conv1", "fc"], ["low", "high", "third"]


def columns_of(space: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    columns = {"image_id": np.arange(4), "label": np.array(list("abca"), dtype=object)}
    for tap in TAPS:
        for channels, teacher in enumerate(TEACHERS, start=2):
            shape = (4, channels, *space[tap])
            columns[feature_column(tap, teacher)] = rng.normal(size=shape).astype(np.float16)
    return columns


@pytest.mark.parametrize("teachers", [TEACHERS, TEACHERS[::-1]])
def test_channels_lie_teacher_after_teacher(teachers):
    columns = columns_of({"conv1": (2, 3), "fc": ()})
    stacked = stack_columns(columns, TAPS, teachers)
    for tap in TAPS:
        for image in range(4):
            expected = []
            for teacher in teachers:
                expected += list(columns[feature_column(tap, teacher)][image])
            np.testing.assert_array_equal(stacked[tap][image], np.stack(expected))
        assert stacked[tap].dtype == np.float16


def test_other_columns_stay_and_parts_go():
    columns = columns_of({"conv1": (2, 3), "fc": ()})
    stacked = stack_columns(columns, TAPS, TEACHERS)
    assert set(stacked) == {"image_id", "label", *TAPS}
    assert stacked["label"] is columns["label"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_refused_by_tap(value):
    columns = columns_of({"conv1": (2, 3), "fc": ()})
    columns[feature_column("fc", "high")][2, 1] = value
    with pytest.raises(ValueError, match=r"tap fc: .*not finite"):
        stack_columns(columns, TAPS, TEACHERS)


def test_a_value_too_large_for_half_precision_is_refused():
    columns = columns_of({"conv1": (), "fc": ()})
    with np.errstate(over="ignore"):
        columns[feature_column("conv1", "low")] = np.full((4, 2), 70_000.0).astype(np.float16)
    with pytest.raises(ValueError, match="tap conv1"):
        stack_columns(columns, TAPS, TEACHERS)


def test_a_teacher_and_tap_have_a_column_of_their_own():
    names = {feature_column(tap, teacher) for tap in TAPS for teacher in TEACHERS}
    assert len(names) == len(TAPS) * len(TEACHERS)
