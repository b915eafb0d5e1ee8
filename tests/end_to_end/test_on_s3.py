"""The digits with images, teachers and output on a server that speaks S3: killed, run again, then used."""

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
from ka_ray.storage.files import atomic_file, list_files
from ka_ray.storage.uris import to_path

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]

PATIENCE_S = 600
QUICK = {
    "codes": {"epochs": 4},
    "layers": {"epochs": 6, "batch_size": 32, "learning_rate": 0.01},
    "joint": {"epochs": 6, "batch_size": 32, "learning_rate": 0.002},
}
TEACHERS = {"low": range(5), "high": range(5, 10)}


def put_images(uri: str) -> None:
    """Write the digits as Parquet of several row groups; every fifth image is to judge on."""
    digits = load_digits()
    columns: dict[str, list] = {"image": [], "label": []}
    for pixels, target in zip(digits.images, digits.target, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(file, "PNG")
        columns["image"].append(file.getvalue())
        columns["label"].append(f"digit_{target}")
    table, judged_on = pa.table(columns), np.arange(len(digits.target)) % 5 == 4
    for name, rows in (("train", ~judged_on), ("test", judged_on)):
        with atomic_file(to_path(f"{uri}/images/{name}.parquet")) as part:
            pq.write_table(table.filter(pa.array(rows)), part, row_group_size=300)


def source(uri: str, name: str) -> dict:
    path = f"{uri}/images/{name}.parquet"
    return {"source": "parquet", "path": path, "label_column": "label", "size": 16}


def put_teachers(uri: str, stored: Path) -> list[dict]:
    """Train two teachers, in this process, straight to the server."""
    images = load_images(source(uri, "train"))
    listed = open_source(images)
    create_shard_folder(stored)
    for chunk in listed.chunks:
        for columns in read_chunk(images, listed.read, chunk, np.arange(listed.num_images), None, refuse):
            write_shard(stored, columns)
    mark_folder_finished(stored, {})
    trees = []
    for name, classes in TEACHERS.items():
        tree = {"name": name, "network": "plain", "arguments": {"widths": [16, 32]}}
        tree["classes"] = [f"digit_{i}" for i in classes]
        training = {"epochs": 8, "batch_size": 32}
        config = TeacherConfig.model_validate(tree | {"training": training})
        train_teacher(
            config, stored, to_path(f"{uri}/teachers"), 0, torch.device("cpu"), lambda progress: None
        )
        trees.append(tree | {"checkpoint": str(teacher_checkpoint_path(to_path(f"{uri}/teachers"), name))})
    return trees


def refuse(image_id: int, name: str) -> None:
    raise AssertionError(f"image {image_id} is unreadable: {name}")


@pytest.fixture
def config(s3, tmp_path) -> Path:
    """A run whose images, teachers and output are on the server."""
    put_images(s3)
    tree = {
        "name": "digits",
        "output": f"{s3}/run",
        "images": source(s3, "train"),
        "evaluation": {"images": source(s3, "test")},
        "teachers": put_teachers(s3, tmp_path / "stored"),
        "ray": {"workers": 2},
        "tracking": {"backend": "none"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree | QUICK))
    return path


def start(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    """Call the command with a Ray of its own: its workers have the environment of this test."""
    return subprocess.Popen(
        [sys.executable, "-m", "ka_ray.cli", *arguments],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_on_s3_is_killed_goes_on_and_is_used(s3, s3_requests, tmp_path, config):
    folder = to_path(f"{s3}/run")
    first, ends = start("run", str(config), cwd=tmp_path), time.monotonic() + PATIENCE_S
    while not (folder / "stages" / "codes.json").exists():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < ends
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    shards, read = s3_requests("PUT", ".arrow"), s3_requests("GET", ".arrow")
    assert shards

    second = start("run", str(config), cwd=tmp_path)
    output = second.communicate(timeout=PATIENCE_S)[0]
    assert second.returncode == 0, output
    assert "extract" not in output
    assert s3_requests("PUT", ".arrow") == shards
    assert s3_requests("GET", ".arrow") == read  # the second run's workers use the first one's copies

    report = Report.load(f"{s3}/run")
    assert report.accuracy.labelled == 359
    assert report.accuracy.union >= 0.9 * report.accuracy.ensemble
    made = list_files(folder)
    assert {"report.md", "student.json", "student.safetensors", "features/done.json"} <= {*made}
    assert {name for name in made if name.endswith(".png")} == {
        f"figures/{name}.png" for name in ("accuracy", "confusion", "losses", "reconstruction")
    }
    assert not (tmp_path / "runs").exists()

    picture = tmp_path / "four.png"
    Image.fromarray(np.round(load_digits().images[4] * 255 / 16).astype(np.uint8)).save(picture)
    to_path(f"{s3}/four.png").write_bytes(picture.read_bytes())
    near, far = ka_ray.predict(f"{s3}/run", [picture, f"{s3}/four.png"])
    assert near.class_name == far.class_name == "digit_4"
    assert far.path == f"{s3}/four.png"

    judging = ("--images", f"{s3}/images/test.parquet", "--set", "label_column=label")
    judged = start("evaluate", f"{s3}/run", *judging, cwd=tmp_path)
    output = judged.communicate(timeout=PATIENCE_S)[0]
    assert f"union {100 * report.accuracy.union:.1f} % on 359 labelled images" in output
