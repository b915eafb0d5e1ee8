"""The sdist and the wheel: their contents, and the demo run from the wheel in a separate environment."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from ka_ray import __version__

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 1800  # enough even on a busy machine
RELEASE = f"ka_ray-{__version__}"


def build(kind: str, source: Path, target: Path) -> Path:
    """Build the sdist or the wheel of a source tree into an empty folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=TIMEOUT_S)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build("sdist", REPOSITORY, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel, built from the unpacked sdist, as an installer does that finds no wheel."""
    source = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    return build("wheel", source / RELEASE, tmp_path_factory.mktemp("wheel"))


def read_contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def list_tracked_files() -> list[str]:
    """Return the files in git's index that still exist in the checkout."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout: an unpacked sdist, for example")
    command = ["git", "-c", "safe.directory=*", "ls-files"]  # the checkout may belong to another user
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (REPOSITORY / name).exists()]


def test_the_sdist_contains_every_tracked_file_that_is_not_hidden(sdist):
    with tarfile.open(sdist) as archive:
        packed = {member.name.removeprefix(f"{RELEASE}/") for member in archive if member.isfile()}
    tracked = [name for name in list_tracked_files() if not name.startswith(".")]
    assert {"LICENSE", "Makefile", "requirements.lock", "ka_ray/py.typed"} <= packed
    assert [name for name in tracked if name not in packed] == []


def test_the_sdist_and_the_checkout_build_the_same_wheel(wheel, tmp_path):
    assert read_contents(wheel) == read_contents(build("wheel", REPOSITORY, tmp_path))


def test_the_wheel_contains_only_the_package_its_configs_and_its_license(wheel):
    package = REPOSITORY / "ka_ray"
    modules = {
        f"ka_ray/{path.relative_to(package)}" for kind in ("*.py", "*.css") for path in package.rglob(kind)
    }
    configs = {f"ka_ray/configs/{path.name}" for path in (REPOSITORY / "jobs/configs").iterdir()}
    metadata_files = {
        f"{RELEASE}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
    }
    license_file = f"{RELEASE}.dist-info/licenses/LICENSE"
    packed = read_contents(wheel)
    assert {"ka_ray/configs/digits.yaml", "ka_ray/configs/config.schema.json"} <= configs
    assert "ka_ray/reports/html/style.css" in modules
    assert packed.keys() == modules | configs | metadata_files | {license_file, "ka_ray/py.typed"}
    assert packed[license_file] == (REPOSITORY / "LICENSE").read_bytes()


def test_the_metadata_names_version_and_license(wheel):
    metadata = Parser().parsestr(read_contents(wheel)[f"{RELEASE}.dist-info/METADATA"].decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"


# The tests below install the wheel and what its metadata requires into a new environment, without extras.


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without variables that name the checkout or a cluster."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside of the checkout and return what it printed."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=clean_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` folder of a new environment with the wheel and the versions of the lock file."""
    folder = tmp_path_factory.mktemp("clean")
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--python", sys.executable, "env", cwd=folder)
    lock = REPOSITORY / "requirements.lock"
    run(*uv, "pip", "install", "--python", "env/bin/python", "--constraint", lock, wheel, cwd=folder)
    return folder / "env" / "bin"


PRINT_PATHS = """
import json, sys
from ka_ray import cli
from ka_ray.workflows.demo import demo_config

print(json.dumps([cli.__file__, str(demo_config()), sys.path]))
"""


@pytest.mark.slow
def test_the_environment_uses_the_wheel_and_not_the_checkout(installed, tmp_path):
    module, config, path = json.loads(run(installed / "python", "-c", PRINT_PATHS, cwd=tmp_path))
    (packages,) = installed.parent.glob("lib/python3.*/site-packages")
    assert Path(module) == packages / "ka_ray" / "cli.py"
    assert Path(config) == packages / "ka_ray" / "configs" / "digits.yaml"
    assert [entry for entry in path if Path(entry).is_relative_to(REPOSITORY)] == []
    assert not (packages / "pytest").exists()  # it belongs to the extra `dev`
    assert run(installed / "ka-ray", "--version", cwd=tmp_path) == f"ka-ray {__version__}\n"


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(installed, tmp_path):
    run(installed / "ka-ray", "demo", cwd=tmp_path)
    folder = tmp_path / "runs" / "demo"
    accuracy = json.loads((folder / "report.json").read_text())["accuracy"]
    assert accuracy["labelled"] == 359
    assert accuracy["union"] >= 0.95 * accuracy["ensemble"]
    samples = sorted((folder / "samples").glob("*.png"))
    lines = run(installed / "ka-ray", "predict", folder, *samples, cwd=tmp_path).splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(sample) for sample in samples]
