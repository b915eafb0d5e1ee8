"""Test that every value of a config has its type and range, and that a wrong one names its key."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from ka_ray.config import Config, TeachConfig
from ka_ray.config.teachers import name_of_source
from ka_ray.config.yaml_text import parse_yaml
from ka_ray.errors import InputError

COLOURS = ("mean", "std")
"""Their limits depend on `rescale`; a validator checks them."""

LIMITS = ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"})


def list_numbers(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every number of a JSON schema, with the names on the way to it."""
    if isinstance(schema, list):
        for part in schema:
            yield from list_numbers(part, path)
    elif isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not schema.keys() & {"enum", "const"}:
            yield path, schema
        for key, part in schema.items():
            if key not in ("default", "enum", "const", "description"):
                yield from list_numbers(part, (*path, key))


@pytest.mark.parametrize("kind", [Config, TeachConfig])
def test_every_number_of_the_schema_has_a_smallest_and_a_largest_value(kind):
    numbers = [item for item in list_numbers(kind.model_json_schema()) if not {*COLOURS} & {*item[0]}]
    assert len(numbers) > 40
    assert [path for path, number in numbers if not all(limit & number.keys() for limit in LIMITS)] == []


@pytest.mark.parametrize("value", ["-1", "4294967296", ".nan", "true", "1.5", "[]", "''", "x"])
def test_a_seed_is_an_integer_that_random_generators_take(load_config, value):
    with pytest.raises(InputError, match=r"seed: "):
        load_config(f"seed={value}")


@pytest.mark.parametrize(
    "override",
    [
        *("joint.learning_rate=.nan", "joint.learning_rate=.inf", "joint.temperature=0", "joint.ema=.nan"),
        *("joint.batch_size=true", "joint.epochs=10000000000", "joint.weight_decay=-.inf", "joint.epochs=-1"),
        *("extract.shard_mib=.inf", "extract.object_store_gib=.nan", "extract.batch_size=0"),
        *("ray.timeout_s=1.0e+12", "ray.workers=-1", "ray.workers=true", "ray.workers={min: 1, max: .inf}"),
        *("placement.teachers.cpu=.nan", "placement.trainers.gpu=.inf", "placement.trials.cpu=1.0e-9"),
        *("placement.teachers.resources={a: .inf}", "placement.teachers.resources={'': 1}"),
        *("tune.factors=[.nan]", "tune.factors=[true]", "tune.ridges=[.inf]", "tune.widths={conv1: [0]}"),
        *("scores.shares={low: .nan, high: 1}", "scores.shift=0", "codes.widths={energy: .nan}"),
        *("student.widths=.nan", "student.widths=true", "student.widths={conv1: true}", "student.network=''"),
        *("images.limit=0", "images.size=100000", "images.decoding.white=.nan", "images.owner=''"),
        *("evaluation.holdout=.nan", "layers.ridge=.inf", "layers.max_gram_gib=.nan", "tune.budget=0"),
        *("teachers.0.output=''", "teachers.0.output=-1", "teachers.0.name=a/b", "teachers.0.name=''"),
        *("name=''", "name=a/b", "taps={'': conv1}", "taps={a/b: conv1}", "taps={a.b: conv1}"),
        *("teachers.0.preprocessing.mean=[.nan, 0, 0]", "teachers.0.preprocessing.std=[.2, .2, .inf]"),
        *("teachers.0.preprocessing.std=[0, 1, 1]", "teachers.0.preprocessing.std=[1.0e-30, 1, 1]"),
        *("teachers.0.preprocessing.rescale=.inf", "teachers.0.preprocessing.size=-8"),
        *("teachers.0.classes=['', b, c, d, e]", "teachers.0.classes=[a, ' ', c, d, e]"),
    ],
)
def test_a_value_out_of_range_is_one_message_that_names_its_key(load_config, override):
    key = override.partition("=")[0].removesuffix(".min").removesuffix(".max")
    with pytest.raises(InputError) as caught:
        load_config(override)
    message, (section, _, last) = str(caught.value), key.rpartition(".")
    assert f"{key}" in message or (f"{section}: " in message and f"{last}: " in message)


@pytest.mark.parametrize("key", ["name", "teachers.0.name"])
def test_a_name_that_is_too_long_for_a_file_is_refused(load_config, key):
    load_config(f"{key}={'x' * 100}")
    with pytest.raises(InputError, match=rf"{key}: .*at most 100 characters"):
        load_config(f"{key}={'x' * 101}")


def test_a_teacher_whose_file_has_a_long_name_gets_a_shorter_one():
    assert name_of_source(f"{'long' * 60}.safetensors") == "long" * 25


def test_text_has_an_end(load_config):
    with pytest.raises(InputError, match=r"student\.network: .*at most 4096 characters"):
        load_config(f"student.network={'x' * 5000}")


def test_a_config_with_many_mistakes_lists_the_first_ones(load_config):
    with pytest.raises(InputError, match="980 more") as caught:
        load_config(f"teachers={list(range(1000))}")
    assert len(str(caught.value).splitlines()) == 22


@pytest.mark.parametrize(
    "text", ["&a [*a]", "a: 2026-13-45", "!!int x", "!!timestamp x", "1" * 5000, "[" * 5000, "a: [", "\x00"]
)
def test_what_is_no_yaml_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_yaml(text)


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ValueError, match="more than 1000000 values"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize("index", ["\u00b2", "9" * 5000, "-1", "2", "one"])
def test_an_index_that_the_list_does_not_have_is_refused(load_config, index):
    with pytest.raises(InputError, match="must be an index below 2"):
        load_config(f"teachers.{index}.name=x")


def test_flags_stay_possible_where_they_mean_something(load_config):
    config = load_config("joint.compile=true", "student.arguments={pretrained: false, scale: .nan}")
    assert config.joint.compile
    assert math.isnan(config.student.arguments["scale"])
    with pytest.raises(ValidationError):
        Config.model_validate({**config.model_dump(), "seed": True})
