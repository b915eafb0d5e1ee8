"""The checks of `ka-ray doctor`, each with a fake of the smallest thing that it asks."""

import socket
import time
from pathlib import Path

import pytest

from ka_ray.config import RayConfig, TrackingConfig
from ka_ray.errors import InputError
from ka_ray.runs import gpu_checks, machine_checks, server_checks
from ka_ray.runs.findings import finding_of_error
from ka_ray.runs.gpu_checks import TorchBuild, check_gpus
from ka_ray.terminal.nvidia import Gpu

GIB = 1024**3


class FakeDriver:
    """A driver for CUDA 12.2 with one GPU."""

    version, cuda = "535.104", (12, 2)

    def gpus(self):
        return (Gpu("Test GPU", 80 * GIB, 0, 0.0),)


class OldDriver(FakeDriver):
    version, cuda = "470.1", (11, 4)


class BrokenDriver(FakeDriver):
    def gpus(self):
        raise OSError("nvmlDeviceGetCount_v2 returned 999")


USABLE = TorchBuild("2.11", "12.8", 1, "", ("sm_80", "sm_90"), ((9, 0),))
REFUSED = "The NVIDIA driver on your system is too old"


@pytest.mark.parametrize(
    ("build", "driver", "state", "found", "advice"),
    [
        (TorchBuild("2.11+cpu", None), None, "ok", "no driver of NVIDIA", ""),
        (TorchBuild("2.11", "12.8"), None, "ok", "built for CUDA 12.8 and will use CPUs", ""),
        (TorchBuild("2.11+cpu", None), FakeDriver(), "warning", "is built for CPUs", "CUDA 12.2 or older"),
        (USABLE, FakeDriver(), "ok", "can use 1", ""),  # minor versions of CUDA 12 are compatible
        (TorchBuild("2.11", "12.8", reason=REFUSED), OldDriver(), "error", "too old", "one for CUDA 12.8"),
        (
            TorchBuild("2.11", "12.1", reason="busy"),
            FakeDriver(),
            "error",
            "cannot use them: busy",
            "restart",
        ),
        (USABLE, OldDriver(), "warning", "the driver is too old", "update the driver"),
        (
            TorchBuild("2.11", "12.8", 1, "", ("sm_80", "sm_90"), ((12, 0),)),
            FakeDriver(),
            "error",
            "without code for Test GPU",
            "built for this GPU",
        ),
        (
            TorchBuild("2.11", "12.8", 1, "", ("sm_80", "sm_90", "compute_90"), ((12, 0),)),
            FakeDriver(),
            "ok",
            "can use 1",
            "",
        ),
        (USABLE, BrokenDriver(), "error", "returned 999", "restart"),
    ],
)
def test_the_driver_must_suit_the_build_of_torch(monkeypatch, build, driver, state, found, advice):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finding = check_gpus(lambda: build, lambda: driver)
    assert (finding.state, found in finding.found, advice in finding.advice) == (state, True, True), finding


def test_hidden_gpus_and_a_torch_that_cannot_be_imported_are_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = check_gpus(lambda: TorchBuild("2.11", "12.1"), FakeDriver)
    assert (hidden.state, hidden.advice) == ("warning", "unset CUDA_VISIBLE_DEVICES")

    def fail():
        raise OSError("libcudart.so.12: cannot open shared object file")

    broken = check_gpus(fail, FakeDriver)
    assert broken.state == "error"
    assert "libcudart" in broken.found


def test_this_torch_is_read():
    import torch

    assert gpu_checks.read_torch_build().version == torch.__version__


def test_python_and_libraries():
    assert machine_checks.check_python((3, 11, 0)).state == "ok"
    old = machine_checks.check_python((3, 10, 4))
    assert (old.state, "3.10.4" in old.found, "3.11" in old.advice) == ("error", True, True)
    versions = {"ray": "2.60.0", "torch": "1.0", "torchvision": "1", "mlflow": "3.10"}
    wrong = machine_checks.check_libraries(versions.__getitem__, ["ray>=2.60", "torch>=2.11"])
    assert (wrong.state, wrong.found) == ("error", "torch 1.0 instead of >=2.11")
    assert wrong.advice.endswith("-m pip install 'torch>=2.11'")
    assert (
        machine_checks.check_libraries(versions.__getitem__, ["ray>=2.60", "x; extra == 'y'"]).state == "ok"
    )
    missing = machine_checks.check_libraries(wanted=["no_such_package_1>=2"])
    assert missing.found == "no_such_package_1 missing instead of >=2"
    assert machine_checks.check_libraries().state == "ok"


@pytest.mark.parametrize(("free", "state"), [(64 * 1024**2, "warning"), (4 * GIB, "ok")])
def test_shared_memory_must_hold_the_object_store(free, state):
    finding = machine_checks.check_shared_memory(free, 8 * GIB)
    assert finding.state == state
    assert ("--shm-size=2g" in finding.advice) == (state == "warning")


@pytest.mark.parametrize(
    ("limits", "state"),
    [((1024, 524288), "ok"), ((256, 256), "error"), ((1024, 2048), "warning"), ((1, -1), "ok")],
)
def test_open_files_are_judged_by_the_hard_limit(limits, state):
    assert machine_checks.check_open_files(limits).state == state


def test_disks(tmp_path, monkeypatch):
    check = lambda folder: machine_checks.check_disk(Path(folder), "output folder", "give another --output")  # noqa: E731
    assert check(tmp_path / "new" / "er").state == "ok"
    (tmp_path / "file").touch()
    assert check(tmp_path / "file" / "x").advice == "give another --output"
    for free, state in ((GIB // 2, "error"), (2 * GIB, "warning"), (50 * GIB, "ok")):
        usage = type("Usage", (), {"free": free, "total": 100 * GIB})
        monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert check(tmp_path).state == state
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 80)
    assert machine_checks.check_temporary_folder().state == "error"


def test_names_are_looked_up_at_the_same_time_and_bounded(monkeypatch):
    monkeypatch.setattr(server_checks, "NAME_S", 0.5)

    def look_up(host):
        if host == "slow":
            time.sleep(60)
        if host == "wrong":
            raise socket.gaierror(-2, "Name or service not known")

    assert server_checks.check_names({"a": "x", "b": "y"}, look_up).state == "ok"
    finding = server_checks.check_names({"a": "x", "slow": "ray.address", "wrong": "tracking.uri"}, look_up)
    assert finding.state == "error"
    assert "slow (ray.address): no answer within 0.5 s" in finding.found
    assert "wrong (tracking.uri): Name or service not known" in finding.found
    assert server_checks.check_names({"wrong": "this machine"}, look_up).state == "warning"


def test_an_error_of_ray_or_mlflow_becomes_a_finding_with_advice(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        ray = server_checks.check_ray(RayConfig(address=f"127.0.0.1:{port}"))
        uri = f"http://127.0.0.1:{port}"
        mlflow = server_checks.check_tracking(TrackingConfig(uri=uri), tmp_path)
    assert (ray.state, ray.advice.startswith("Start it (`ray start --head`)")) == ("error", True), ray
    assert (mlflow.state, mlflow.advice.startswith("Start it, correct the URI")) == ("error", True), mlflow
    assert server_checks.check_ray(RayConfig(address="local")).state == "ok"
    assert server_checks.check_tracking(TrackingConfig(), tmp_path).state == "ok"
    assert server_checks.check_tracking(TrackingConfig(backend="none"), tmp_path).state == "ok"


@pytest.mark.parametrize(
    ("there", "here", "state"),
    [
        ("3.17.2", "3.17.2", "ok"),
        ("3.9.0", "3.17.2", "warning"),
        ("2.22.0", "3.17.2", "error"),
        (None, "3.1", "ok"),
    ],
)
def test_the_version_of_the_tracking_server_is_compared(tmp_path, monkeypatch, there, here, state):
    monkeypatch.setattr(server_checks, "check_tracker", lambda config, output: None)
    monkeypatch.setattr(server_checks, "version", lambda name: here)
    monkeypatch.setattr(server_checks, "find_server_version", lambda uri: there)
    assert server_checks.check_tracking(TrackingConfig(uri="http://tracker:5000"), tmp_path).state == state


def test_an_error_without_advice_is_told_whole():
    finding = finding_of_error("Ray", InputError("what is this"))
    assert (finding.found, finding.advice) == ("what is this", "see the message")
