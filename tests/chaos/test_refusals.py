"""Runs that cannot work end with one clear message and an exit code, and finished work is kept and reused."""

import contextlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from harness import JOB_TIMEOUT_S, clean_environment, wait_until
from safetensors.torch import load_file, save_file

from ka_ray import cli
from ka_ray.errors import EXIT_TRY_AGAIN
from ka_ray.features.shard_recovery import read_image_ids
from ka_ray.teachers.plain import plain_conv_net

# Overrides for a run of about a minute, with several shards of features.
QUICK = (
    "tracking.backend=none",
    "extract.shard_mib=0.3",
    "codes.epochs=1",
    "layers.epochs=1",
    "joint.epochs=1",
)


@pytest.fixture
def write_config(tmp_path, config_tree):
    """Return a function that writes ``config_tree`` to a file and returns the path."""

    def write() -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config_tree))
        return path

    return write


def start_run(config: Path, output: Path, *overrides: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ka_ray.cli", "run", str(config), "--output", str(output)]
    command += [part for override in (*QUICK, *overrides) for part in ("--set", override)]
    return subprocess.Popen(
        command,
        env=clean_environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_error(process: "subprocess.Popen[str]", code: int = 2) -> str:
    """Wait until a run ends with the given exit code, and return its error message."""
    out, err = process.communicate(timeout=JOB_TIMEOUT_S)
    assert process.returncode == code, out + err
    return find_error(err)


def find_error(shown: str) -> str:
    """Return the only error message, which can have several lines."""
    assert "Traceback" not in shown, shown
    _, message = re.split(r"^error: ", shown, flags=re.MULTILINE)
    return message


@pytest.fixture
def refuse(write_config, tmp_path, capsys):
    """Return a function that runs ``config_tree`` in this process, and returns its error."""

    def run() -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", str(write_config()), "--output", str(tmp_path / "out")])
        assert ended.value.code == 2
        return find_error(capsys.readouterr().err)

    return run


def wait_for_success(process: "subprocess.Popen[str]") -> str:
    """Wait until a run ends without an error, and return its output."""
    out, err = process.communicate(timeout=JOB_TIMEOUT_S)
    assert process.returncode == 0, out[-2000:] + err[-2000:]
    return out


def test_a_missing_network_factory_is_named(write_config, config_tree, tmp_path):
    config_tree["teachers"][1] |= {"network": "no_such_package.networks:make", "arguments": {}}
    message = read_error(start_run(write_config(), tmp_path / "out"))
    assert "network 'no_such_package.networks:make': cannot import" in message
    assert not (tmp_path / "out").exists()


def test_a_function_of_the_standard_library_is_refused_as_network_factory(refuse, config_tree, tmp_path):
    marker = tmp_path / "was_called"
    config_tree["teachers"][0] |= {"network": "os:system", "arguments": {"command": f"touch {marker}"}}
    assert "'os:system' is a function of Python itself" in refuse()
    assert not marker.exists()


def test_weights_that_are_nan_are_named(refuse, config_tree, tmp_path):
    checkpoint = Path(config_tree["teachers"][0]["checkpoint"])
    weights = load_file(checkpoint)
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].view(-1)[0] = math.nan
    save_file(weights, checkpoint)
    message = refuse()
    assert f"checkpoint {checkpoint}: contains weights that are NaN or infinite: {name}" in message


def test_a_truncated_checkpoint_is_named(refuse, config_tree, tmp_path):
    checkpoint = Path(config_tree["teachers"][1]["checkpoint"])
    checkpoint.write_bytes(checkpoint.read_bytes()[:-40])
    assert f"checkpoint {checkpoint} cannot be read" in refuse()


def test_a_wrong_number_of_scores_is_reported_with_both_numbers(refuse, config_tree, tmp_path):
    teacher = config_tree["teachers"][0]
    arguments = teacher["arguments"] | {"num_classes": 7}
    config_tree["student"] = {"network": "plain", "arguments": teacher["arguments"]}
    config_tree["taps"] = {"conv1": "norm1"}
    teacher |= {"network": "ka_ray.teachers.plain:plain_conv_net", "arguments": arguments}
    save_file(plain_conv_net(**arguments).state_dict(), teacher["checkpoint"])
    assert "teacher low: `classes` names 5 classes, but the network outputs (7,)" in refuse()


@pytest.mark.ray
@pytest.mark.chaos
def test_a_full_disk_ends_the_run_and_it_resumes_with_more_space(write_config, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        process = start_run(write_config(), disk / "out", "images.size=16")
        wait_until(
            lambda: any(disk.glob("out/features/*.arrow")) or process.poll() is not None,
            300,
            "no shard of features was written",
        )
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(2**16)):  # until the disk is full; the run writes at the same time
                pass
        assert "the disk is full" in read_error(process, EXIT_TRY_AGAIN)
        kept = {shard: shard.stat().st_mtime_ns for shard in disk.glob("out/features/*.arrow")}
        assert kept
        (disk / "filler").unlink()
        wait_for_success(start_run(write_config(), disk / "out", "images.size=16"))
        assert {shard: shard.stat().st_mtime_ns for shard in kept} == kept
        done = json.loads((disk / "out" / "features" / "done.json").read_text())
        assert done["resumed"] >= sum(len(read_image_ids(shard)) for shard in kept)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.ray
@pytest.mark.chaos
def test_damaged_files_of_a_run_are_named_and_the_others_are_reused(write_config, tmp_path):
    out = tmp_path / "out"
    wait_for_success(start_run(write_config(), out))
    student = (out / "student.safetensors").read_bytes()

    def remove_results(stage: str) -> None:
        """Remove the results of stages whose names match, the evaluation and the student."""
        for path in [*out.glob(f"stages/{stage}*"), *out.glob("student.*"), out / "stages" / "evaluate.json"]:
            path.unlink(missing_ok=True)

    codes = out / "stages" / "codes.safetensors"
    complete = codes.read_bytes()
    codes.write_bytes(complete[: len(complete) // 2])
    remove_results("layers")
    message = read_error(start_run(write_config(), out))
    assert f"checkpoint {codes} cannot be used" in message
    assert "Delete codes.json in the same folder" in message
    (out / "stages" / "codes.json").unlink()

    shards = sorted(out.glob("features/*.arrow"))
    missing = read_image_ids(shards[1])
    shards[1].write_bytes(shards[1].read_bytes()[:-64])
    assert f"features {shards[1]} are damaged" in read_error(start_run(write_config(), out))
    shards[1].unlink()
    (out / "features" / "done.json").unlink()
    stamps = {shard: shard.stat().st_mtime_ns for shard in shards if shard.exists()}
    remove_results("[clj]")  # codes, layers, joint
    wait_for_success(start_run(write_config(), out))
    assert {shard: shard.stat().st_mtime_ns for shard in stamps} == stamps
    ids = np.concatenate([read_image_ids(shard) for shard in out.glob("features/*.arrow")])
    assert len(ids) == len(np.unique(ids)) == 1438 - 144  # a tenth of the images is held out
    assert set(missing) <= set(ids)
    # Only the size is compared: the new weights may differ by rounding.
    assert len(student) == (out / "student.safetensors").stat().st_size
