"""The JSON schemas are those of the code, and they accept the repository's configs and the shorthands."""

import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from ka_ray.config import Config
from ka_ray.config.json_schema import SCHEMAS, build_schema, format_schema

FOLDER = Path(__file__).parents[2] / "jobs" / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
VALIDATORS = {file: Draft202012Validator(build_schema(kind)) for file, kind in SCHEMAS.items()}
SMALL = {
    "name": "pets",
    "images": {"source": "folder", "path": "photos", "size": 224},
    "teachers": ["hf/dogs", "birds.ckpt"],
}


def find_mistakes(tree, file="config.schema.json"):
    return [f"{error.json_path}: {error.message}" for error in VALIDATORS[file].iter_errors(tree)]


@pytest.mark.parametrize("file", SCHEMAS)
def test_the_published_schema_is_that_of_the_code(file):
    Draft202012Validator.check_schema(build_schema(SCHEMAS[file]))
    assert (FOLDER / file).read_text("utf-8") == format_schema(SCHEMAS[file]), "run `make schemas`"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_of_the_repository_are_accepted(path):
    tree = yaml.safe_load(path.read_text("utf-8"))
    assert find_mistakes(tree, "teach.schema.json" if "teacher" in tree else "config.schema.json") == []


def test_the_template_names_its_schema_in_the_first_line():
    first = (FOLDER / "folder.yaml").read_text("utf-8").splitlines()[0]
    file = re.fullmatch(r"# yaml-language-server: \$schema=(.*)", first)[1]
    assert (FOLDER / file).is_file()


@pytest.mark.parametrize(
    "part",
    [
        {"teachers": [{"from": "hf/dogs"}, {"from": "birds.ckpt", "name": None, "classes": "birds.txt"}]},
        {"student": {"start": "auto", "widths": 0.5}},
        {"student": {"start": {"teacher": "dogs"}, "widths": {"energy": 1}}},
        {"student": {"start": None, "widths": {"layer1.0.conv1": 24}}},
        {"codes": {"solver": None, "widths": {"like": "dogs"}}},
        {"joint": {"epochs": None, "batch_size": None, "loss": None, "keep": None, "batch_norms": None}},
        {"scores": {"views": "flip"}},
        {"scores": {"views": None, "descriptive": "timm/tf_efficientnet_lite0"}},
        {"taps": {"middle": {"dogs": "features.12", "birds": "layer2"}, "last": "layer4"}},
        {"ray": {"workers": {"min": 1, "max": 2}}},
        {"images": {"source": "mixed", "size": 8, "parts": [{"source": "folder", "path": "a"}] * 2}},
    ],
    ids=str,
)
def test_short_forms_are_accepted(part):
    assert find_mistakes(SMALL | part) == []


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"joint": {"epoch": 5}}, "$.joint"),
        ({"joint": {"epochs": -1}}, "$.joint.epochs"),
        ({"teachers": [{"network": "plain"}, "birds.ckpt"]}, "$.teachers[0]"),
        ({"student": {"start": "best"}}, "$.student.start"),
        ({"images": {"source": "camera", "size": 8}}, "$.images"),
        ({"name": "two words"}, "$.name"),
    ],
    ids=str,
)
def test_mistakes_are_found_at_their_key(part, place):
    assert [mistake.split(": ")[0] for mistake in find_mistakes(SMALL | part)] == [place]


def set_each_key(tree, value):
    """Yield copies of a tree in which one key, at any depth, has another value; and the key."""
    for key in tree:
        yield key, tree | {key: value}
        if isinstance(tree[key], dict):
            for inner, changed in set_each_key(tree[key], value):
                yield f"{key}.{inner}", tree | {key: changed}


@pytest.fixture
def whole_config(tmp_path, monkeypatch):
    """A config with every key, also those of its teachers, as the output folder keeps it."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "dogs.pt", "birds.pt"):
        Path(name).mkdir()
    teacher = {"network": "plain", "classes": ["a", "b"]}
    teachers = [teacher | {"name": name, "checkpoint": f"{name}.pt"} for name in ("dogs", "birds")]
    config = Config.model_validate(SMALL | {"teachers": teachers, "scores": {"descriptive": "dogs.pt"}})
    return config.model_dump(mode="json")


@pytest.mark.parametrize("value", [None, "text", 7, 0.5, [], {}, "dogs.pt", 2.0], ids=str)
def test_what_a_config_accepts_the_schema_accepts(whole_config, value):
    first = whole_config["teachers"][0]
    trees = dict(set_each_key(whole_config, value))
    for key, teacher in set_each_key(first, value):
        trees[f"teachers.{key}"] = whole_config | {"teachers": [teacher, whole_config["teachers"][1]]}
    assert len(trees) > 150
    accepted = {key: tree for key, tree in trees.items() if is_accepted(tree)}
    assert {key: mistakes for key, tree in accepted.items() if (mistakes := find_mistakes(tree))} == {}


def is_accepted(tree):
    try:
        Config.model_validate(tree)
    except ValidationError:
        return False
    return True


def test_a_whole_config_is_accepted(whole_config):
    assert find_mistakes(whole_config) == []
