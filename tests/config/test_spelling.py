"""Every misspelled key and every misspelled value of a config is answered with what was probably meant."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest

from ka_ray.config import Config, TeachConfig, load_images, load_tree
from ka_ray.config.base import Section
from ka_ray.config.mixture import SHARED_KEYS
from ka_ray.config.spelling import _kinds
from ka_ray.errors import InputError
from ka_ray.runs.variants import expand_variants

TEACHERS = [
    {
        "name": name,
        "classes": [f"{name} {i}" for i in range(2)],
        "network": "plain",
        "training": {"epochs": 1},
    }
    for name in ("dogs", "birds")
]
WHOLE = {"name": "x", "images": {"source": "digits"}, "teachers": TEACHERS}
Path = tuple[str | int, ...]


def sections(kind: Any, path: Path = ()) -> Iterator[tuple[Path, type[Section]]]:
    """Yield every section that a config can have, and where."""
    for one in _kinds(kind):
        if isinstance(one, type) and issubclass(one, Section):
            yield path, one
            for name, field in one.model_fields.items():
                yield from sections(field.annotation, (*path, field.alias or name))
        elif get_origin(one) is tuple:
            yield from sections(get_args(one)[0], (*path, 0))


def misspell(word: str) -> str:
    """Write a letter in the middle of a word twice."""
    middle = len(word) // 2
    return word[:middle] + word[middle] + word[middle:]


ALL = list(dict.fromkeys(sections(Config)))
KEYS = [(path, kind, field.alias or name) for path, kind in ALL for name, field in kind.model_fields.items()]
VALUES = [
    (path, kind, field.alias or name, value)
    for path, kind in ALL
    for name, field in kind.model_fields.items()
    for one in _kinds(field.annotation)
    if get_origin(one) is Literal
    for value in get_args(one)
    if isinstance(value, str) and not ("parts" in path and name in SHARED_KEYS)
]
"""Without those that a part of a mixture may not have."""


def refusal(path: Path, kind: type[Section], **entries: Any) -> str:
    """Return the message about a config whose section at a path has only these entries."""
    source = kind.model_fields.get("source")
    if source is not None and not {"source", misspell("source")} & entries.keys():
        entries = {"source": get_args(source.annotation)[0], **entries}
    section: Any = entries
    for part in reversed(path):
        if isinstance(part, int):
            section = [section, TEACHERS[1]] if path[0] == "teachers" else [section]
        elif part == "parts":
            section = {"source": "mixed", "size": 8, "parts": section}
        elif part == "decoding":
            section = {"source": "digits", "decoding": section}
        else:
            section = {part: section}
    with pytest.raises(InputError) as error:
        load_tree(Config, {**WHOLE, **section}, [], "config.yaml")
    return str(error.value)


def dotted(*parts: str | int) -> str:
    return ".".join(map(str, parts))


def test_the_whole_schema_is_tried():
    assert len(ALL) > 40
    assert {(), ("joint", "augment"), ("evaluation", "images", "parts", 0), ("ray", "workers")} <= {
        path for path, _ in ALL
    }
    assert len(KEYS) > 300
    assert len(VALUES) > 60


@pytest.mark.parametrize(("path", "kind", "key"), KEYS, ids=lambda value: str(value)[:40])
def test_a_misspelled_key_is_named_with_the_nearest_one(path, kind, key):
    wrong = misspell(key)
    if wrong in kind.model_fields:
        pytest.skip("the misspelling is another key")
    lines = refusal(path, kind, **{wrong: 0.5}).splitlines()
    if key == "source":  # without it, nothing else is known of the section
        assert f"  {dotted(*path, key)}: is missing; is it {wrong}?" in lines
        return
    [line] = [line for line in lines if line.startswith(f"  {dotted(*path, wrong)}: ")]
    assert f"; did you mean {dotted(*path, key)}?" in line


@pytest.mark.parametrize(("path", "kind", "key", "value"), VALUES, ids=lambda value: str(value)[:40])
def test_a_misspelled_value_is_answered_with_the_nearest_one(path, kind, key, value):
    wrong = misspell(value)
    message = refusal(path, kind, **{key: wrong})
    line = next(line for line in message.splitlines() if line.startswith(f"  {dotted(*path, key)}"))
    assert f"did you mean {value}?" in line, message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["join.epochs=1"], "join: unknown key; did you mean joint?"),
        (["teachers.dog.classes=[a,b]"], "'dog' must be an index below 2; did you mean dogs?"),
        (["codes.widths={like: dogs, x: 1}"], "codes.widths.x: unknown key"),
        (["codes.widths={lke: dogs}"], "codes.widths.lke: Input should be a valid integer"),
        (["student.start={teachr: dogs}"], "did you mean student.start.teacher?"),
        (
            ["scores.rule=xyz"],
            "scores.rule: Input should be 'concatenate', 'mean', 'max' or 'conditional' (giv",
        ),
        (
            ["tracking.colour=1"],
            "tracking.colour: unknown key; there are backend, uri, experiment, model, ",
        ),
    ],
)
def test_overrides_are_answered_like_the_file(overrides, message):
    with pytest.raises(InputError) as error:
        load_tree(Config, {**WHOLE}, overrides, "config.yaml")
    assert message in str(error.value)


def test_other_configs_are_answered_in_the_same_way():
    with pytest.raises(InputError, match=r"teacher\.clases: unknown key; did you mean teacher\.classes\?"):
        load_tree(TeachConfig, {"name": "x", "teacher": {"clases": ["a", "b"]}}, [], "config.yaml")
    with pytest.raises(InputError, match=r"labeled: unknown key; did you mean labelled\?"):
        load_images({"source": "folder", "path": ".", "size": 8, "labeled": True})


@pytest.mark.parametrize(
    ("methods", "vary", "message"),
    [
        (["distil"], [], "did you mean distill?"),
        (["direct"], ["scores.rul=mean"], "did you mean scores.rule?"),
    ],
)
def test_methods_and_varied_keys_are_answered_with_the_nearest_one(methods, vary, message):
    with pytest.raises(InputError) as error:
        expand_variants(methods, vary)
    assert message in str(error.value)
