"""What travels with a job, and what does not."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

import ka_ray
from ka_ray import errors
from ka_ray.errors import InputError
from ka_ray.runs.extension import TEACHERS
from ka_ray.runs.output_folder import CONFIG
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.teacher import teacher_checkpoint_path
from ka_ray.storage.files import format_bytes
from ka_ray.submission import package as packaging
from ka_ray.submission.package import pack


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder: ignored teachers, images, a module of their own, and much that no job needs."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/low", "photos/cat/__pycache__", "nets/deep", "other", ".git"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("runs/\n*.png\n")
    (tmp_path / "photos/.gitignore").write_text("*\n")
    files = [
        "runs/low/teacher.safetensors",
        "runs/low/features.bin",
        "photos/cat/1.png",
        "names.txt",
        ".git/x",
    ]
    files += [
        "photos/cat/__pycache__/x.pyc",
        "other/big.bin",
        "nets/__init__.py",
        "nets/deep/net.py",
        "one.py",
    ]
    for name in files:
        (tmp_path / name).write_text(name)
    (tmp_path / "run.yaml").write_text("name: run\n")
    return tmp_path


def contents(tree=None, named=(), config="run.yaml"):
    package = pack(Path(config), tree or {}, named)
    package.write(Path("job.zip"))
    with zipfile.ZipFile("job.zip") as package:
        return {name: package.read(name) for name in package.namelist()}


def own(names):
    return {name for name in names if not name.startswith("ka_ray/")}


def test_the_package_that_runs_here_travels(project):
    sent = {name for name in contents() if name.startswith("ka_ray/")}
    source = Path(ka_ray.__file__).parent
    files = [path for pattern in ("*.py", "py.typed") for path in source.rglob(pattern)]
    assert sent == {f"ka_ray/{path.relative_to(source)}" for path in files}
    assert contents()["ka_ray/errors.py"] == Path(errors.__file__).read_bytes()


def test_nothing_travels_that_was_not_named(project):
    assert own(contents()) == {"run.yaml"}


def test_what_git_ignores_travels_where_it_is_named(project):
    sent = contents(named=["runs/low/teacher.safetensors", "./photos", "names.txt"])
    assert own(sent) == {
        "run.yaml",
        "runs/low/teacher.safetensors",
        "photos/cat/1.png",
        "names.txt",
    }
    assert sent["runs/low/teacher.safetensors"] == b"runs/low/teacher.safetensors"


def test_a_config_from_elsewhere_travels_too(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "far.yaml"
    elsewhere.write_text("name: far\n")
    assert own(contents(config=str(elsewhere))) == {"_config/far.yaml"}
    (project / "configs").mkdir()
    (project / "configs/near.yaml").write_text("name: near\n")
    assert own(contents(config="configs/near.yaml")) == {"configs/near.yaml"}
    assert own(contents(config=str(project / "configs/near.yaml"))) == {"configs/near.yaml"}


def test_modules_of_factories_travel_and_installed_ones_do_not(project):
    networks = ["nets.deep.net:make", "one:make", "torchvision.models:vgg11", "plain", "ka_ray.student:x"]
    tree = {"teachers": [{"network": network} for network in networks], "student": {"network": "one:small"}}
    assert own(contents(tree)) == {"run.yaml", "nets/__init__.py", "nets/deep/net.py", "one.py"}
    assert pack(Path("run.yaml"), {"teacher": {"network": "nowhere.to:be"}}, []).missing == ["nowhere"]


def test_a_module_on_the_path_below_this_folder_is_put_where_the_job_finds_it(project, monkeypatch):
    (project / "src").mkdir()
    (project / "src/mine.py").write_text("mine")
    monkeypatch.syspath_prepend(str(project / "src"))
    assert own(contents({"student": {"network": "mine:make"}})) == {"run.yaml", "mine.py"}


def test_files_that_arguments_name_travel_and_folders_do_not(project):
    tree = {"student": {"network": "plain", "arguments": {"weights": "names.txt", "kind": "other", "n": 3}}}
    assert own(contents(tree)) == {"run.yaml", "names.txt"}


def test_of_an_extended_run_travels_what_extending_needs(project):
    folder = Path("runs/two")
    needed = [
        folder / CONFIG,
        stage_summary_path(folder, "codes"),
        stage_summary_path(folder, "codes").with_suffix(".safetensors"),
    ]
    needed += [teacher_checkpoint_path(folder / TEACHERS, "low")]
    for path in [*needed, folder / "features/0.bin", folder / "student.safetensors"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    sent = contents({"extend": "runs/two"}, ["runs/two"])
    assert own(sent) == {"run.yaml", *(path.as_posix() for path in needed)}
    with pytest.raises(InputError, match="other holds nothing that is needed of a finished run"):
        pack(Path("run.yaml"), {"extend": "other"}, ["other"])


def test_the_same_content_gives_the_same_package(project):
    named = ["photos", "names.txt"]
    contents(named=named)
    first = Path("job.zip").read_bytes()
    for path in project.rglob("*"):
        path.touch()
    contents(named=list(reversed(named)))
    assert Path("job.zip").read_bytes() == first
    (project / "names.txt").write_text("other")
    contents(named=named)
    assert Path("job.zip").read_bytes() != first


def test_the_size_is_known_before_anything_is_written(project):
    package = pack(Path("run.yaml"), {}, ["photos"])
    package.write(Path("job.zip"))
    assert package.num_bytes == Path("job.zip").stat().st_size


def test_too_much_is_refused_with_the_largest_named(project, monkeypatch):
    with (project / "photos/cat/1.png").open("wb") as file:
        file.truncate(packaging.MAX_UPLOAD_BYTES)  # a hole: takes no room on the disk
    package = pack(Path("run.yaml"), {}, ["names.txt", "photos"])
    with pytest.raises(InputError, match=r"photos \(100\.0 MiB\), ka_ray .*every node reaches.*s3://"):
        package.check()
    pack(Path("run.yaml"), {}, ["names.txt"]).check()


@pytest.mark.parametrize(
    ("named", "words"),
    [("../outside", r"\.\./outside lies outside of the current folder"), ("empty", "empty holds no file")],
)
def test_what_cannot_travel_is_refused(project, named, words):
    (project / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        pack(Path("run.yaml"), {}, [named])


def test_sizes_are_written_for_people():
    assert [format_bytes(n) for n in (0, 1024**2 - 1024, 1024**2)] == ["0.0 KiB", "1023.0 KiB", "1.0 MiB"]


def test_what_is_sent_runs_by_itself(project):
    """The package in the zip file, and no other, is what `python -m ka_ray.cli` starts there."""
    contents()
    with zipfile.ZipFile("job.zip") as package:
        package.extractall("there")
    code = "import json, ka_ray.cli; print(json.dumps(ka_ray.cli.__file__))"
    done = subprocess.run(
        [packaging.sys.executable, "-c", code], cwd="there", capture_output=True, text=True, check=True
    )
    assert Path(json.loads(done.stdout)).is_relative_to(project / "there")
