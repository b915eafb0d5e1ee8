"""Test which files are sent with a job, and which are not."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

import ka_ray
from ka_ray import errors
from ka_ray.config.module_folders import add_module_folders
from ka_ray.errors import InputError
from ka_ray.runs.extended_gate import DESCRIPTION_FILE, GATE_FILE, REPORT
from ka_ray.runs.extension import TEACHERS
from ka_ray.runs.output_folder import CONFIG, DIGESTS
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.teacher import teacher_checkpoint_path
from ka_ray.storage.files import format_bytes
from ka_ray.submission import package as package_module
from ka_ray.submission.package import collect_package


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a user's folder: teachers and images that git ignores, modules, and files that no job needs."""
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


def zip_contents(tree=None, named=(), config="run.yaml"):
    package = collect_package(Path(config), tree or {}, named)
    package.write(Path("job.zip"))
    with zipfile.ZipFile("job.zip") as package:
        return {name: package.read(name) for name in package.namelist()}


def without_ka_ray(names):
    return {name for name in names if not name.startswith("ka_ray/")}


def test_the_source_of_ka_ray_is_sent(project):
    sent = {name for name in zip_contents() if name.startswith("ka_ray/")}
    source = Path(ka_ray.__file__).parent
    files = [path for pattern in ("*.py", "*.css", "py.typed") for path in source.rglob(pattern)]
    assert sent == {f"ka_ray/{path.relative_to(source)}" for path in files}
    assert zip_contents()["ka_ray/errors.py"] == Path(errors.__file__).read_bytes()


def test_only_named_files_are_sent(project):
    assert without_ka_ray(zip_contents()) == {"run.yaml"}


def test_named_files_are_sent_even_if_git_ignores_them(project):
    sent = zip_contents(named=["runs/low/teacher.safetensors", "./photos", "names.txt"])
    assert without_ka_ray(sent) == {
        "run.yaml",
        "runs/low/teacher.safetensors",
        "photos/cat/1.png",
        "names.txt",
    }
    assert sent["runs/low/teacher.safetensors"] == b"runs/low/teacher.safetensors"


def test_a_config_outside_of_the_folder_is_sent(project, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "far.yaml"
    outside.write_text("name: far\n")
    assert without_ka_ray(zip_contents(config=str(outside))) == {"_config/far.yaml"}
    (project / "configs").mkdir()
    (project / "configs/near.yaml").write_text("name: near\n")
    assert without_ka_ray(zip_contents(config="configs/near.yaml")) == {"configs/near.yaml"}
    assert without_ka_ray(zip_contents(config=str(project / "configs/near.yaml"))) == {"configs/near.yaml"}


def test_modules_of_factories_are_sent_unless_they_are_installed(project):
    networks = ["nets.deep.net:make", "one:make", "torchvision.models:vgg11", "plain", "ka_ray.student:x"]
    tree = {"teachers": [{"network": network} for network in networks], "student": {"network": "one:small"}}
    assert without_ka_ray(zip_contents(tree)) == {
        "run.yaml",
        "nets/__init__.py",
        "nets/deep/net.py",
        "one.py",
    }
    tree = {"teacher": {"network": "no_such_package.nets:make"}}
    assert collect_package(Path("run.yaml"), tree, []).missing == ["no_such_package"]


def test_a_module_beside_the_config_is_sent(project):
    (project / "configs").mkdir()
    (project / "configs/my_nets.py").write_text("def small(): ...")
    add_module_folders(project / "configs/run.yaml")
    names = zip_contents({"teachers": [{"network": "my_nets:small"}]})
    assert without_ka_ray(names) == {"run.yaml", "my_nets.py"}


def test_a_module_in_a_subfolder_is_sent_to_the_top_of_the_jobs_folder(project, monkeypatch):
    (project / "src").mkdir()
    (project / "src/mine.py").write_text("mine")
    monkeypatch.syspath_prepend(str(project / "src"))
    assert without_ka_ray(zip_contents({"student": {"network": "mine:make"}})) == {"run.yaml", "mine.py"}


def test_files_in_arguments_are_sent_and_folders_are_not(project):
    tree = {"student": {"network": "plain", "arguments": {"weights": "names.txt", "kind": "other", "n": 3}}}
    assert without_ka_ray(zip_contents(tree)) == {"run.yaml", "names.txt"}


def test_only_the_needed_files_of_an_extended_run_are_sent(project):
    folder = Path("runs/two")
    needed = [
        folder / CONFIG,
        stage_summary_path(folder, "codes"),
        stage_summary_path(folder, "codes").with_suffix(".safetensors"),
    ]
    needed += [teacher_checkpoint_path(folder / TEACHERS, "low"), folder / REPORT, folder / DIGESTS]
    needed += [folder / "gates/hints" / name for name in (GATE_FILE, DESCRIPTION_FILE)]
    others = ("features/0.bin", "student.safetensors", "gates/hints/owners/0.arrow")
    for path in [*needed, *(folder / name for name in others)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    sent = zip_contents({"extend": "runs/two"}, ["runs/two"])
    assert without_ka_ray(sent) == {"run.yaml", *(path.as_posix() for path in needed)}
    with pytest.raises(InputError, match=r"other holds none of the files that are needed of it \(config"):
        collect_package(Path("run.yaml"), {"extend": "other"}, ["other"])


def test_only_the_model_of_a_teacher_that_is_a_folder_is_sent(project):
    for name in ("student.json", "student.safetensors", "report.md", "features/0.arrow"):
        (project / "runs/merged" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "runs/merged" / name).write_text(name)
    merged = {"run.yaml", "runs/merged/student.json", "runs/merged/student.safetensors"}
    teachers = [{"from": "local-dir:runs/merged"}, {"from": str(project / "other")}, "timm/resnet18"]
    assert without_ka_ray(zip_contents({"teachers": teachers}, ["runs/merged"])) == merged
    # Of a single file, the folder's description is needed, too.
    teachers = ["runs/merged/student.safetensors"]
    assert without_ka_ray(zip_contents({"teachers": teachers}, teachers)) == merged


def test_the_same_content_gives_the_same_package(project):
    named = ["photos", "names.txt"]
    zip_contents(named=named)
    first = Path("job.zip").read_bytes()
    for path in project.rglob("*"):
        path.touch()
    zip_contents(named=list(reversed(named)))
    assert Path("job.zip").read_bytes() == first
    (project / "names.txt").write_text("other")
    zip_contents(named=named)
    assert Path("job.zip").read_bytes() != first


def test_the_upload_limit_applies_to_the_size_of_the_zip_file(project, monkeypatch):
    package = collect_package(Path("run.yaml"), {}, ["photos"])
    package.write(Path("job.zip"))
    size = Path("job.zip").stat().st_size
    assert size > sum(entry.num_bytes for entry in package.entries)
    monkeypatch.setattr(package_module, "MAX_UPLOAD_BYTES", size + 1)
    package.write(Path("job.zip"))
    monkeypatch.setattr(package_module, "MAX_UPLOAD_BYTES", size)
    with pytest.raises(InputError, match="the cluster accepts less than"):
        package.write(Path("job.zip"))


def test_a_too_large_package_is_refused_before_it_is_written(project, monkeypatch):
    with (project / "photos/cat/1.png").open("wb") as file:
        file.truncate(package_module.MAX_UPLOAD_BYTES)  # a sparse file, which needs no disk space
    package = collect_package(Path("run.yaml"), {}, ["names.txt", "photos"])
    with pytest.raises(InputError, match=r"photos \(100\.0 MiB\), ka_ray .*every node reaches.*s3://"):
        package.write(Path("job.zip"))
    assert not Path("job.zip").exists()
    collect_package(Path("run.yaml"), {}, ["names.txt"]).write(Path("job.zip"))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("../outside", r"\.\./outside lies outside of the current folder"),
        ("empty", "empty holds no file that can be sent"),
    ],
)
def test_paths_that_cannot_be_sent_are_refused(project, named, message):
    (project / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        collect_package(Path("run.yaml"), {}, [named])


def test_format_bytes_chooses_the_unit():
    assert [format_bytes(n) for n in (0, 1024**2 - 1024, 1024**2)] == ["0.0 KiB", "1023.0 KiB", "1.0 MiB"]


def test_the_sent_package_is_imported_instead_of_this_checkout(project):
    """`python -m ka_ray.cli` in the job's folder starts the package from the zip file and no other."""
    zip_contents()
    with zipfile.ZipFile("job.zip") as package:
        package.extractall("unpacked")
    code = "import json, ka_ray.cli; print(json.dumps(ka_ray.cli.__file__))"
    finished = subprocess.run(
        [package_module.sys.executable, "-c", code],
        cwd="unpacked",
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(json.loads(finished.stdout)).is_relative_to(project / "unpacked")


def test_the_descriptive_network_is_sent_as_teachers_are(project):
    Path("hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (Path("hf") / name).write_text("{}")
    by_factory = {
        "scores": {"descriptive": {"network": "nets.deep.net:make", "arguments": {"names": "names.txt"}}}
    }
    assert {"nets/__init__.py", "nets/deep/net.py", "names.txt"} <= set(zip_contents(by_factory))
    for given in ("hf", {"from": "hf/model.safetensors"}):
        assert "hf/config.json" in zip_contents({"scores": {"descriptive": given}})
