"""Test what the config accepts of owners, hints and shares."""

import json

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
        ("scores.shares={low: 1, high: 1, nobody: 1}", "no teacher nobody; .* nobody, who has no share"),
        ("teachers.0.name=nobody", "teachers: none may be called nobody"),
        ("images.owner=nobody", "images: the owner of all is nobody"),
        ("scores.gate=hints", r"scores\.gate: hints, but no image is known to belong to low, high; give"),
    ],
)
def test_owners_that_cannot_be_are_refused(load_config, override, message):
    with pytest.raises(InputError, match=message):
        load_config(override)


def test_nobody_owns_a_part_of_the_images_or_hints_but_not_all(load_config, tmp_path):
    parts = [{"source": "digits", "owner": "nobody"}, {"source": "digits", "owner": "low"}]
    mixed = f"images={{source: mixed, size: 8, parts: {json.dumps(parts)}}}"
    assert load_config(mixed).images.named_owners == {"nobody", "low"}
    config = load_config(mixed, f"scores.hints={{nobody: {tmp_path}}}")
    assert config.gates == ("owners", "hints")
    parts[1]["owner"] = "nobody"
    with pytest.raises(InputError, match="images: the owner of all is nobody"):
        load_config(f"images={{source: mixed, size: 8, parts: {json.dumps(parts)}}}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{weights: DEFAULT}", "network: is missing"),
        ("{network: resnet18}", "checkpoint: is missing: resnet18 alone has random weights"),
        ("{network: resnet18, checkpoint: nowhere.pt}", r"scores\.descriptive\.checkpoint: .*does not exist"),
        ("{network: resnet18, classes: [a, b]}", r"scores\.descriptive\.classes"),
        ("nowhere/at/all.pt", "does not exist"),
    ],
)
def test_a_descriptive_network_that_cannot_be_is_refused(load_config, given, message):
    with pytest.raises(InputError, match=message):
        load_config(f"scores.descriptive={given}")


def test_a_descriptive_network_takes_the_forms_of_a_teacher(load_config, config_tree):
    checkpoint = config_tree["teachers"][0]["checkpoint"]
    named = load_config(f"scores.descriptive={{network: plain, checkpoint: {checkpoint}}}")
    assert str(named.scores.descriptive.checkpoint) == checkpoint
    assert load_config("scores.descriptive=timm/resnet18.a1_in1k").scores.descriptive.from_ is not None
    assert load_config("scores.descriptive={network: 'mine:net'}").scores.descriptive.checkpoint is None
    assert load_config().scores.descriptive is None


def test_no_teacher_may_be_called_as_the_descriptive_network(load_config, config_tree):
    config_tree["teachers"][0]["name"] = "descriptive"
    assert load_config().scores.descriptive is None
    with pytest.raises(InputError, match=r"scores\.descriptive: a teacher is called descriptive"):
        load_config("scores.descriptive=timm/resnet18.a1_in1k")


def test_a_gate_leaves_no_room_for_a_rule(load_config):
    with pytest.raises(InputError, match=r"scores\.rule: mean; leave it out"):
        load_config("scores.rule=mean", "scores.gate=self")
    assert load_config("scores.rule=mean").scores.rule == "mean"  # without owners, there is no gate


def test_hints_need_images_of_every_teacher_unless_a_column_may_have_them(load_config, tmp_path):
    with pytest.raises(InputError, match=r"no image is known to belong to high; give scores\.hints"):
        load_config("scores.gate=hints", "images.owner=low")
    given = load_config("scores.gate=hints", "images.owner=low", f"scores.hints={{high: {tmp_path}}}")
    assert given.gates == ("hints",)
    (tmp_path / "list.csv").write_text("path,teacher\n")
    column = f"images={{source: list, path: {tmp_path / 'list.csv'}, size: 8, owner_column: teacher}}"
    assert load_config(column, "scores.gate=hints").gates == ("hints",)
