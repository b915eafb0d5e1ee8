"""The digits run with images, teachers and output on an S3 server is killed, resumed, and then used."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import ka_ray
from ka_ray.config import TeacherConfig, load_images
from ka_ray.features.store import create_shard_folder, mark_folder_finished, write_shard
from ka_ray.images import open_source, read_chunk
from ka_ray.reports.report import Report
from ka_ray.stages.teacher import teacher_checkpoint_path, train_teacher
from ka_ray.storage.file_names import list_files
from ka_ray.storage.files import atomic_file
from ka_ray.storage.uris import to_path

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]

TIMEOUT_S = 600
QUICK = {
    "codes": {"epochs": 4},
    "layers": {"epochs": 6, "batch_size": 32, "learning_rate": 0.01},
    "joint": {"epochs": 6, "batch_size": 32, "learning_rate": 0.002},
}
TEACHERS = {"low": range(5), "high": range(5, 10)}


def upload_images(uri: str) -> None:
    """Write the digits as Parquet files with several row groups; every fifth image is for testing."""
    digits = load_digits()
    columns: dict[str, list] = {"image": [], "label": []}
    for pixels, target in zip(digits.images, digits.target, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(file, "PNG")
        columns["image"].append(file.getvalue())
        columns["label"].append(f"digit_{target}")
    table, is_test = pa.table(columns), np.arange(len(digits.target)) % 5 == 4
    for name, rows in (("train", ~is_test), ("test", is_test)):
        with atomic_file(to_path(f"{uri}/images/{name}.parquet")) as part:
            pq.write_table(table.filter(pa.array(rows)), part, row_group_size=300)


def describe_images(uri: str, name: str) -> dict:
    """Return the `images` section of a config for one of the Parquet files."""
    path = f"{uri}/images/{name}.parquet"
    return {"source": "parquet", "path": path, "label_column": "label", "size": 16}


def train_teachers_on_s3(uri: str, store_folder: Path) -> list[dict]:
    """Train two teachers whose checkpoints are on the server; return the `teachers` section of a config.

    Args:
        uri: The bucket.
        store_folder: Local folder for the decoded training images.
    """
    images = load_images(describe_images(uri, "train"))
    opened = open_source(images)
    create_shard_folder(store_folder)
    for chunk in opened.chunks:
        for columns in read_chunk(
            images, opened.read, chunk, np.arange(opened.num_images), None, fail_on_unreadable
        ):
            write_shard(store_folder, columns)
    mark_folder_finished(store_folder, {})
    teachers = []
    for name, classes in TEACHERS.items():
        tree = {"name": name, "network": "plain", "arguments": {"widths": [16, 32]}}
        tree["classes"] = [f"digit_{i}" for i in classes]
        training = {"epochs": 8, "batch_size": 32}
        config = TeacherConfig.model_validate(tree | {"training": training})
        train_teacher(
            config, store_folder, to_path(f"{uri}/teachers"), 0, torch.device("cpu"), lambda progress: None
        )
        teachers.append(tree | {"checkpoint": str(teacher_checkpoint_path(to_path(f"{uri}/teachers"), name))})
    return teachers


def fail_on_unreadable(image_id: int, name: str) -> None:
    raise AssertionError(f"image {image_id} cannot be read: {name}")


@pytest.fixture
def config(s3, tmp_path) -> Path:
    """The config of a run whose images, teachers and output are on the server."""
    upload_images(s3)
    tree = {
        "name": "digits",
        "output": f"{s3}/run",
        "images": describe_images(s3, "train"),
        "evaluation": {"images": describe_images(s3, "test")},
        "teachers": train_teachers_on_s3(s3, tmp_path / "stored"),
        "ray": {"workers": 2},
        "tracking": {"backend": "none"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree | QUICK))
    return path


def start_ka_ray(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    """Start `ka-ray` with its own Ray, so that the workers have the environment of this test."""
    return subprocess.Popen(
        [sys.executable, "-m", "ka_ray.cli", *arguments],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_on_s3_resumes_after_a_kill_and_can_be_used(s3, s3_requests, tmp_path, config):
    folder = to_path(f"{s3}/run")
    first, deadline = start_ka_ray("run", str(config), cwd=tmp_path), time.monotonic() + TIMEOUT_S
    while not (folder / "stages" / "codes.json").exists():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    written, read = s3_requests("PUT", ".arrow"), s3_requests("GET", ".arrow")
    assert written

    second = start_ka_ray("run", str(config), cwd=tmp_path)
    output = second.communicate(timeout=TIMEOUT_S)[0]
    assert second.returncode == 0, output
    assert "extract" not in output
    assert s3_requests("PUT", ".arrow") == written
    # The workers of the second run use the local copies made by those of the first.
    assert s3_requests("GET", ".arrow") == read

    report = Report.load(f"{s3}/run")
    assert report.accuracy.labelled == 359
    assert report.accuracy.union >= 0.9 * report.accuracy.ensemble
    files = list_files(folder)
    assert {"report.md", "student.json", "student.safetensors", "features/done.json"} <= {*files}
    assert {name for name in files if name.endswith(".png")} == {
        f"figures/{name}.png" for name in ("accuracy", "confusion", "losses", "reconstruction")
    }
    assert not (tmp_path / "runs").exists()

    image_path = tmp_path / "four.png"
    Image.fromarray(np.round(load_digits().images[4] * 255 / 16).astype(np.uint8)).save(image_path)
    to_path(f"{s3}/four.png").write_bytes(image_path.read_bytes())
    local, remote = ka_ray.predict(f"{s3}/run", [image_path, f"{s3}/four.png"])
    assert local.class_name == remote.class_name == "digit_4"
    assert remote.path == f"{s3}/four.png"

    test_images = ("--images", f"{s3}/images/test.parquet", "--set", "label_column=label")
    evaluation = start_ka_ray("evaluate", f"{s3}/run", *test_images, cwd=tmp_path)
    output = evaluation.communicate(timeout=TIMEOUT_S)[0]
    assert f"union {100 * report.accuracy.union:.1f} % on 359 labelled images" in output
