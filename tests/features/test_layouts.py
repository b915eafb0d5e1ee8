"""Test that a module's output is split into features and other tokens, and built again from them."""

import pytest
import torch

from ka_ray.errors import InputError
from ka_ray.features.layouts import Layout, parse_tap_path

OUTPUTS = {
    "map": (Layout(), (2, 5, 3, 3), (2, 5, 3, 3), None),
    "vector": (Layout(), (2, 5), (2, 5), None),
    "channels last": (Layout("nhwc"), (2, 3, 4, 5), (2, 5, 3, 4), None),
    "patches": (Layout("patches"), (2, 9, 5), (2, 5, 3, 3), None),
    "patches behind two tokens": (Layout("patches", 2), (2, 11, 5), (2, 5, 3, 3), (2, 2, 5)),
    "class token": (Layout("cls"), (2, 10, 5), (2, 5), (2, 9, 5)),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_join_is_the_inverse_of_split(name):
    layout, shape, features_shape, rest_shape = OUTPUTS[name]
    output = torch.randn(shape)
    features, rest = layout.split(output)
    assert features.shape == features_shape
    assert (None if rest is None else rest.shape) == rest_shape
    assert layout.has_rest == (rest is not None)
    joined = layout.join(features.contiguous(), rest)
    assert torch.equal(joined, output)
    assert joined.is_contiguous()


def test_patch_tokens_become_a_map_row_by_row():
    tokens = torch.arange(10.0).view(1, 10, 1)
    features, rest = Layout("patches", 1).split(tokens)
    assert features[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert rest.item() == 0
    assert Layout("cls").split(tokens)[0].item() == 0


@pytest.mark.parametrize(
    "layout", [Layout("nhwc"), Layout("patches", 0), Layout("patches", 5), Layout("cls")]
)
def test_the_rule_of_a_layout_asks_for_this_layout(layout):
    assert parse_tap_path("late", "blocks.5" + layout.rule) == ("blocks.5", layout)


def test_a_path_without_a_rule_says_nothing_about_the_layout():
    assert parse_tap_path("late", "blocks.5") == ("blocks.5", None)
    assert parse_tap_path("late", "blocks.5:nchw") == ("blocks.5", Layout())
    assert Layout().rule == ""


@pytest.mark.parametrize("rule", ["", "class", "prefix", "prefix=", "prefix=-1", "prefix=one", "cls:nhwc"])
def test_an_unknown_rule_is_refused(rule):
    with pytest.raises(
        InputError, match=rf"taps\.late: 'blocks\.5:{rule}' ends in ':{rule}'.*`:cls`.*`:nhwc`"
    ):
        parse_tap_path("late", f"blocks.5:{rule}")
