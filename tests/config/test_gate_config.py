"""Test what the config accepts of owners, hints and shares."""

import pytest

from ka_ray.errors import InputError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("images.owner=middle", "owners of images: no teacher middle"),
        ("scores.shares={low: 1}", "scores.shares: needs every teacher"),
        ("scores.shares={low: 1, other: 2}", "owners of images: no teacher other"),
        ("scores.hints={low: nowhere}", r"scores\.hints\.low: .*nowhere.* does not exist"),
        ("scores.gate=sometimes", r"scores\.gate"),
        ("scores.gate=hints", r"scores\.gate: hints, but no owners are known"),
    ],
)
def test_owners_that_cannot_be_are_refused(load_config, override, message):
    with pytest.raises(InputError, match=message):
        load_config(override)


def test_a_gate_leaves_no_room_for_a_rule(load_config):
    with pytest.raises(InputError, match=r"scores\.rule: mean; leave it out"):
        load_config("scores.rule=mean", "scores.gate=self")
    assert load_config("scores.rule=mean").scores.rule == "mean"  # without owners, there is no gate
