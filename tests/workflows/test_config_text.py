"""Test that a config is written as YAML with comments that cannot change it."""

import pytest
import yaml

from ka_ray.workflows.config_text import render_config

AWKWARD = {
    "name": "on",
    "output": "a: b #c",
    "images": {"path": "x\ny é \u2028", "labelled": False, "size": 64, "arguments": {}, "views": []},
    "teachers": [
        {"name": "1", "preprocessing": {"mean": [1, 2.5], "inner": {"key": None}}, "classes": ["a, b", "["]},
        {"name": "2", "arguments": {}},
        "birds.ckpt",
        ["a"],
        {},
    ],
    "taps": {"layer.1": {"no": "conv1", "null": "1e3"}},
    "joint": {"learning_rate": 1e-05, "epochs": 0},
    "long": "word " * 60,
    "empty": None,
}
HOSTILE = "class\nseed: 5\u2028seed: 6\x85seed: 7\rseed: 8 \x1b[2J" + " long" * 60


@pytest.mark.parametrize(
    "comments",
    [{}, {key: [HOSTILE, ""] for key in ("", "images", "images.size", "teachers.0", "teachers.2", "end")}],
)
def test_the_text_is_the_same_mapping_in_the_same_order_whatever_the_comments_hold(comments):
    text = render_config(AWKWARD, comments)
    assert yaml.safe_load(text) == AWKWARD
    assert list(yaml.safe_load(text)) == list(AWKWARD)
    assert "\x1b" not in text


def test_comments_stand_above_their_keys():
    tree = {"name": "a", "images": {"path": "p", "size": 8}, "teachers": [{"name": "x", "from": "f"}]}
    text = render_config(
        tree, {"": ["top"], "images.size": ["assumed"], "teachers.0": ["known"], "end": ["bye"]}
    )
    assert text == (
        "# top\nname: a\n\nimages:\n  path: p\n  # assumed\n  size: 8\n\n"
        "teachers:\n  # known\n  - name: x\n    from: f\n\n# bye\n"
    )
