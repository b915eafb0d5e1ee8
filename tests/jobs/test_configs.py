"""Every file in jobs/configs is loaded, and every job script refuses bad input with exit code 2."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

import ka_ray
from ka_ray.config import Config, Decoding, FolderImages, TeachConfig, TeacherConfig, TeachingConfig
from ka_ray.config.joint import CHOSEN_KEYS
from ka_ray.images.decode import decode_image
from ka_ray.images.views import View
from ka_ray.student import Student
from ka_ray.student.plan import make_plan
from ka_ray.teachers import build_teacher

JOBS = Path(__file__).parents[2] / "jobs"
CONFIGS = sorted((JOBS / "configs").glob("*.yaml"))


@pytest.fixture
def job_folder(tmp_path, monkeypatch):
    """A folder in which every path that the configs name exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for folder in ("images/train", "runs/cifar10_teacher_a/a", "runs/cifar10_teacher_b/b"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / f"runs/cifar10_teacher_{name}/{name}/teacher.safetensors").touch()
    for name in ("dogs", "birds"):
        (tmp_path / f"{name}.txt").write_text(f"{name}_1\n{name}_2\n")
        (tmp_path / f"{name}.safetensors").touch()
    return tmp_path


def path_overrides(path: Path) -> list[str]:
    """Return overrides that replace the paths of images in a config by a folder that exists."""
    if path.stem == "cifar10_and_signs":
        parts = [f"{images}.parts.{i}" for images in ("images", "evaluation.images") for i in range(2)]
        return [f"{part}.path=data" for part in parts]
    if "cifar10" in path.name:
        return ["images.path=data", "evaluation.images.path=data"]
    return []


def load_config_file(name: str) -> Config:
    path = JOBS / "configs" / f"{name}.yaml"
    return Config.load(path, path_overrides(path))


def test_the_configs_are_exactly_the_expected_ones():
    names = {path.name for path in CONFIGS}
    assert names == {
        "digits.yaml",
        "cifar10_teacher_a.yaml",
        "cifar10_teacher_b.yaml",
        "cifar10_halves.yaml",
        "cifar10_halves_exact.yaml",
        "cifar10_five.yaml",
        "cifar10_overlap.yaml",
        "cifar10_and_signs.yaml",
        "folder.yaml",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads(job_folder, path):
    kind = TeachConfig if "teacher" in path.stem else Config
    config = kind.load(path, path_overrides(path))
    assert config.output_dir == job_folder / "runs" / config.name


def iterate_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from iterate_keys(field.annotation, f"{prefix}{name}.")


def test_the_template_explains_every_key():
    text = (JOBS / "configs/folder.yaml").read_text()
    missing = [key for key in iterate_keys(Config) if not re.search(rf"\b{key.rpartition('.')[2]}:\s", text)]
    assert missing == []
    for section in ("codes", "layers", "joint"):
        block = text.split(f"\n{section}:\n")[1].split("\n\n")[0]
        section_keys = {key.split(".")[1] for key in iterate_keys(Config) if key.startswith(f"{section}.")}
        assert {key for key in section_keys if f"  {key}: " not in block} == set()


EXAMPLES = {"taps", "teachers.checkpoint", "teachers.network", "teachers.classes"}
"""Keys that the template sets to an example although they have a default."""


def iterate_given_values(
    tree: dict[str, Any], section: type[BaseModel], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name, the value and the default of each key of a config that has a default."""
    for name, value in tree.items():
        # `from` is a word of Python, so its field has another name.
        field, key = section.model_fields["from_" if name == "from" else name], prefix + name
        if key == "images":
            yield from iterate_given_values(value, FolderImages, f"{key}.")
        elif key == "teachers":
            for teacher in value:
                yield from iterate_given_values(teacher, TeacherConfig, f"{key}.")
        elif not field.is_required() and key not in EXAMPLES:
            default = field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel) and isinstance(value, dict):
                yield from iterate_given_values(value, type(default), f"{key}.")
            else:
                yield key, value, list(default) if isinstance(default, tuple) else default


def test_the_template_shows_the_default_of_every_key():
    tree = yaml.safe_load((JOBS / "configs/folder.yaml").read_text())
    found = list(iterate_given_values(tree, Config))
    chosen = {f"joint.{key}" for key in CHOSEN_KEYS}
    differing = {key: (value, default) for key, value, default in found if value != default}
    assert differing.keys() == chosen
    assert all(value is None for value, _ in differing.values())
    # All other keys are sections, required, examples, or (`evaluation.images`) only explained in a comment.
    compared, all_keys = {key for key, _, _ in found}, set(iterate_keys(Config))
    sections = {key for key in all_keys if any(other.startswith(f"{key}.") for other in all_keys)}
    assert all_keys - compared - sections == {"name", "images", "teachers", "taps", "evaluation.images"}


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_teacher_configs_show_every_option_of_training_with_its_default(name):
    tree = yaml.safe_load((JOBS / f"configs/cifar10_teacher_{name}.yaml").read_text())
    training = tree["teacher"]["training"]
    assert training.keys() == TeachingConfig.model_fields.keys()
    chosen = {"epochs", "batch_size", "learning_rate", "augment"}
    defaults = {key: TeachingConfig.model_fields[key].default for key in training.keys() - chosen}
    assert {key: training[key] for key in defaults} == defaults


def test_crop_and_squash_give_the_same_for_square_images():
    """The digits, CIFAR-10 and the signs are square, and their configs do not set `resize`."""
    for side, size in ((8, 16), (100, 64), (64, 64), (33, 224)):
        pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
        image = decode_image(pixels, Decoding())
        crop, squash = View("shorter", size, size), View("squash", size, size)
        np.testing.assert_array_equal(crop.apply(image), squash.apply(image))


@pytest.mark.parametrize("config", ["cifar10_halves", "cifar10_halves_exact"])
def test_the_halves_use_the_teachers_that_the_teacher_configs_train(job_folder, config):
    halves = load_config_file(config)
    for name, teacher in zip("ab", halves.teachers, strict=True):
        path = JOBS / f"configs/cifar10_teacher_{name}.yaml"
        taught = TeachConfig.load(path, path_overrides(path))
        assert teacher.classes == taught.teacher.classes
        assert teacher.arguments == taught.teacher.arguments
        assert teacher.preprocessing == taught.teacher.preprocessing
        assert teacher.checkpoint == taught.output_dir / name / "teacher.safetensors"


def test_the_exact_halves_have_the_same_images_and_teachers_and_a_student_of_known_size(job_folder):
    halves, exact = load_config_file("cifar10_halves"), load_config_file("cifar10_halves_exact")
    assert (exact.images, exact.teachers) == (halves.images, halves.teachers)
    paths = [JOBS / f"configs/cifar10_teacher_{name}.yaml" for name in "ab"]
    teachers = [build_teacher(TeachConfig.load(path, path_overrides(path)).teacher) for path in paths]
    sizes = [
        sum(p.numel() for p in Student(make_plan(c, teachers).spec).parameters()) for c in (exact, halves)
    ]
    assert sizes == [390_314, 390_986]


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def build_plan(config: Config):
    return make_plan(config, [build_teacher(teacher) for teacher in config.teachers])


def test_five_teachers_of_two_classes_each_become_a_student_of_ten(job_folder):
    config = load_config_file("cifar10_five")
    plan = build_plan(config)
    assert [len(teacher.classes) for teacher in config.teachers] == [2] * 5
    assert plan.spec.classes == CIFAR10
    assert plan.label_sets.rule == "concatenate"
    assert plan.channels["conv1"] == (32, 32, 32, 24, 24)
    assert plan.spec.widths == {"conv1": 32, "conv2": 64, "conv3": 128, "conv4": 256}


@pytest.mark.parametrize("rule", ["mean", "max", "conditional"])
def test_the_overlapping_teachers_can_be_amalgamated_by_every_rule(job_folder, rule):
    path = JOBS / "configs/cifar10_overlap.yaml"
    plan = build_plan(Config.load(path, [*path_overrides(path), f"scores.rule={rule}"]))
    assert plan.label_sets.overlap == {"deer": ("a", "b"), "dog": ("a", "b")}
    assert plan.spec.classes == CIFAR10
    assert plan.label_sets.num_scores == 12


def test_teachers_of_photos_and_signs_become_one_plain_student_for_32_pixels(job_folder):
    plan = build_plan(load_config_file("cifar10_and_signs"))
    assert plan.spec.classes == (*CIFAR10, *(f"sign_{i}" for i in range(10)))
    assert plan.spec.paths == {"first": "conv1", "early": "conv2", "middle": "conv3", "late": "conv4"}
    assert plan.shapes == {
        "first": (32 + 64, 32, 32),
        "early": (64 + 64, 16, 16),
        "middle": (128 + 128, 8, 8),
        "late": (256 + 256, 4, 4),
    }
    assert plan.kept_adapters == {}


DIGITS = str(JOBS / "configs/digits.yaml")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("amalgamate.py", ["missing.yaml"], "missing.yaml does not exist"),
        ("amalgamate.py", [DIGITS, "--extend", "nowhere"], "nowhere does not exist"),
        ("amalgamate.py", [DIGITS, "--extend", "data"], "data holds no config.json"),
        ("train_teacher.py", ["missing.yaml"], "missing.yaml does not exist"),
        ("predict.py", ["nowhere", "x.png"], "nowhere does not exist; give the output"),
        ("evaluate_student.py", ["nowhere", "--images", "digits"], "nowhere does not exist; give the output"),
        ("compare_methods.py", ["missing.yaml"], "missing.yaml does not exist"),
        ("spectrum.py", [DIGITS, "--set", "codes.widths={energy: 2}"], "less than or equal to 1"),
        ("search_widths.py", [DIGITS, "--set", "tune.algorithm=grid"], "more than 24"),
        ("search_widths.py", [DIGITS, "--set", "codes.widths={energy: 0.9}"], "codes.widths.energy: "),
        ("compare_methods.py", [DIGITS, "--methods", "direct,best"], "--methods: best; there are direct, "),
        ("compare_methods.py", [DIGITS, "--vary", "seed=1,2"], "--vary 'seed=1,2'"),
    ],
)
def test_job_scripts_refuse_bad_input_with_one_message(
    job_folder, monkeypatch, capsys, script, arguments, message
):
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(JOBS / script), run_name="__main__")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (job_folder / "runs" / "digits").exists()


SCRIPTS = {
    "amalgamate": ("amalgamate", [DIGITS]),
    "train_teacher": ("teach", [DIGITS]),
    "search_widths": ("search_widths", [DIGITS]),
    "spectrum": ("measure_spectrum", [DIGITS]),
    "compare_methods": ("compare", [DIGITS]),
    "evaluate_student": ("evaluate", ["folder", "--images", "digits"]),
    "predict": ("stream_predictions", ["folder", "x.png"]),
}
"""Script -> the function of ka_ray that it calls, and arguments for the script."""


def test_this_file_tests_every_script():
    assert {path.stem for path in JOBS.glob("*.py")} == SCRIPTS.keys()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("error", "code"), [(FloatingPointError("loss is nan"), 2), (OSError("disk"), None)])
def test_a_script_fails_if_its_run_fails(job_folder, monkeypatch, capsys, script, error, code):
    """Errors that the user can correct end it with one message and code 2, others with a traceback."""

    def fail(*arguments, **options):
        raise error

    name, arguments = SCRIPTS[script]
    monkeypatch.setattr(ka_ray, name, fail, raising=False)
    monkeypatch.setattr("ka_ray.runs.student_images.build_images_config", lambda *arguments, **options: None)
    monkeypatch.setattr(ka_ray.TeachConfig, "load", ka_ray.Config.load)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit if code else OSError) as stopped:
        runpy.run_path(str(JOBS / f"{script}.py"), run_name="__main__")
    assert (stopped.value.code if code else None) == code
    assert ("error: loss is nan" in capsys.readouterr().err) == (code is not None)
