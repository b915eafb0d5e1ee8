"""Test what `ka-ray predict` takes, what it prints, and how it goes on past images that cannot be read."""

import csv
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ka_ray
from ka_ray import cli
from ka_ray.errors import InputError
from ka_ray.student import Student, save_student

NAMES = ["a/1.png", "a/2.png", "b/c/3.jpg", "b/4.png", "z.png"]
"""Images in a folder, in the order in which its files are listed."""


@pytest.fixture
def folder(tmp_path, monkeypatch, make_spec, randomised):
    """The current folder, with a student in `run` and images and other files in `photos`."""
    monkeypatch.chdir(tmp_path)
    save_student(randomised(Student(make_spec("plain", {"conv1": 4}))), tmp_path / "run")
    for number, name in enumerate([*NAMES, ".hidden.png", "a/.cache/5.png", "@eaDir/6.png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path


def probabilities_of(path):
    """The student's probabilities for one image, computed without the command."""
    pixels = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    with torch.inference_mode():
        return ka_ray.load_student("run")(torch.from_numpy(pixels.copy())[None]).softmax(1)[0].numpy()


def run_predict(capsys, *arguments):
    """Return exit code, the lines on standard output, and standard error of the command."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", "run", *arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out.splitlines(), captured.err


def paths_in(lines):
    return [line.split("\t")[0] for line in lines]


def test_a_folder_stands_for_its_images_without_hidden_ones(folder, capsys):
    code, lines, error = run_predict(capsys, "photos")
    assert (code, error) == (0, "")
    assert sorted(paths_in(lines)) == sorted(f"photos/{name}" for name in NAMES)
    for line in lines:
        path, name, probability = line.split("\t")
        expected = probabilities_of(path)
        assert name == f"class_{expected.argmax()}"
        assert float(probability) == pytest.approx(expected.max(), abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["photos/a/*.png"], ["photos/a/1.png", "photos/a/2.png"]),
        (["photos/**/*.png"], ["photos/a/1.png", "photos/a/2.png", "photos/b/4.png", "photos/z.png"]),
        (["photos/b", "photos/a/1.png"], ["photos/b/4.png", "photos/b/c/3.jpg", "photos/a/1.png"]),
        (["photos/z.png", "photos/a/2.png"], ["photos/z.png", "photos/a/2.png"]),
        (["photos/[ab]"], ["photos/a/1.png", "photos/a/2.png", "photos/b/4.png", "photos/b/c/3.jpg"]),
    ],
)
def test_files_folders_and_patterns_keep_their_order(folder, capsys, arguments, expected):
    assert paths_in(run_predict(capsys, *arguments)[1]) == expected


def test_paths_on_standard_input_are_no_patterns(folder, capsys, monkeypatch):
    Path("photos/odd [1].png").write_bytes(Path("photos/z.png").read_bytes())
    given = b"photos/z.png\r\n\nphotos/odd [1].png\nphotos/b/c\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    code, lines, _ = run_predict(capsys, "photos/a/1.png", "-")
    assert code == 0
    assert paths_in(lines) == ["photos/a/1.png", "photos/z.png", "photos/odd [1].png", "photos/b/c/3.jpg"]


@pytest.mark.parametrize("batch_size", ["1", "2", "100"])
def test_the_size_of_a_batch_changes_no_result(folder, capsys, batch_size):
    _, lines, _ = run_predict(capsys, "photos", "--json", "--top", "3", "--batch-size", batch_size)
    for one in map(json.loads, lines):
        expected = probabilities_of(one["path"])
        ranked = np.argsort(-expected)[:3]
        assert [found["class"] for found in one["predictions"]] == [f"class_{index}" for index in ranked]
        found = [found["probability"] for found in one["predictions"]]
        np.testing.assert_allclose(found, expected[ranked], atol=2e-6)
    assert len(lines) == len(NAMES)


def test_csv_has_a_header_and_a_column_for_each_rank(folder, capsys):
    Path("photos/a, b.png").write_bytes(Path("photos/z.png").read_bytes())
    _, lines, _ = run_predict(capsys, "photos/a, b.png", "--csv", "--top", "9")
    (row,) = csv.DictReader(lines)
    assert row["path"] == "photos/a, b.png"
    expected = probabilities_of("photos/z.png")
    assert row["class"] == f"class_{expected.argmax()}"
    assert float(row["probability_4"]) == pytest.approx(expected.min(), abs=1e-6)
    assert row["class_9"] == ""  # there are four classes


def test_unreadable_images_are_named_and_the_others_are_predicted(folder, capsys):
    Path("photos/a/broken.png").write_text("no image")
    code, lines, error = run_predict(capsys, "photos", "nowhere.png", "--batch-size", "2")
    assert len(lines) == len(NAMES)
    assert code == 2
    assert "unreadable: photos/a/broken.png: not an image file\n" in error
    assert "unreadable: nowhere.png: " in error
    assert error.endswith("error: 2 of 7 images cannot be read; they are named above\n")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("photos/notes.txt", "error: image photos/notes.txt cannot be read: not an image file\n"),
        ("photos/*.bmp", "error: no file matches 'photos/*.bmp'\n"),
        ("empty", "error: empty: no image files\n"),
    ],
)
def test_one_path_without_an_image_is_an_error(folder, capsys, argument, message):
    Path("empty").mkdir()
    assert run_predict(capsys, argument) == (2, [], message)


def test_results_do_not_wait_for_paths_to_come(folder):
    endless = itertools.cycle(["photos/z.png", "photos/a/1.png"])
    stream = ka_ray.stream_predictions("run", endless, batch_size=2)
    assert [next(stream).path for _ in range(5)] == [*["photos/z.png", "photos/a/1.png"] * 2, "photos/z.png"]


def test_predict_returns_a_list_and_refuses_what_it_cannot_read(folder):
    (first, *others) = ka_ray.predict("run", "photos", top=2)
    assert len(others) == len(NAMES) - 1
    assert first.top[0] == (first.class_name, first.probability)
    assert len(first.top) == 2
    with pytest.raises(InputError, match=r"notes\.txt cannot be read"):
        ka_ray.predict("run", ["photos/z.png", "photos/notes.txt"])
    with pytest.raises(InputError, match="must be at least 1"):
        ka_ray.predict("run", "photos", top=0)


WITHOUT_RAY_AND_MLFLOW = """
import sys
for name in ("ray", "mlflow"):
    sys.modules[name] = None  # importing it fails, as if it were not installed
import ka_ray
print(len(ka_ray.load_student("run").spec.classes), len(ka_ray.predict("run", "photos")))
print(ka_ray.export("run", "safetensors", "weights").files["student.json"] > 0)
"""


def test_students_are_loaded_used_and_exported_without_ray_and_mlflow(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(ka_ray.__file__).parents[1])}
    command = [sys.executable, "-c", WITHOUT_RAY_AND_MLFLOW]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["4", "5", "True"], done.stderr
