"""Every file in jobs/configs is loaded, and every job script refuses bad input with exit code 2."""

import runpy
import sys
from pathlib import Path

import pytest

from ka_ray.config import Config, TeachConfig

JOBS = Path(__file__).parents[2] / "jobs"
CONFIGS = sorted((JOBS / "configs").glob("*.yaml"))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
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


def overrides(path: Path) -> list[str]:
    if "cifar10" not in path.name:
        return []
    return ["images.path=data", "evaluation.images.path=data"]


def test_there_are_the_configs_that_the_readme_names():
    names = {path.name for path in CONFIGS}
    assert names == {
        "digits.yaml",
        "cifar10_teacher_a.yaml",
        "cifar10_teacher_b.yaml",
        "cifar10_halves.yaml",
        "folder.yaml",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads(workplace, path):
    kind = TeachConfig if "teacher" in path.stem else Config
    config = kind.load(path, overrides(path))
    assert config.output_dir == workplace / "runs" / config.name


def test_the_readmes_example_loads(workplace):
    readme = (JOBS.parent / "README.md").read_text()
    example = readme.split("```yaml\n")[1].split("```")[0]
    (workplace / "pets.yaml").write_text(example)
    (workplace / "photos").mkdir()
    (workplace / "birds.pt").touch()
    assert [t.name for t in Config.load(workplace / "pets.yaml").teachers] == ["dogs", "birds"]


def test_the_teachers_of_the_halves_are_those_that_the_teacher_configs_train(workplace):
    halves = Config.load(
        JOBS / "configs/cifar10_halves.yaml", ["images.path=data", "evaluation.images.path=data"]
    )
    for name, teacher in zip("ab", halves.teachers, strict=True):
        path = JOBS / f"configs/cifar10_teacher_{name}.yaml"
        taught = TeachConfig.load(path, overrides(path))
        assert teacher.classes == taught.teacher.classes
        assert teacher.arguments == taught.teacher.arguments
        assert teacher.preprocessing == taught.teacher.preprocessing
        assert teacher.checkpoint == taught.output_dir / name / "teacher.safetensors"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("amalgamate.py", ["missing.yaml"]),
        ("train_teacher.py", ["missing.yaml"]),
        ("evaluate_student.py", ["nowhere", "--images", "digits"]),
    ],
)
def test_job_scripts_refuse_bad_input_with_one_message(workplace, monkeypatch, capsys, script, arguments):
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(JOBS / script), run_name="__main__")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert arguments[0] in error
