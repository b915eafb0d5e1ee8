"""Class folders and labels that are no classes: refused before work starts, or counted to the end."""

import csv
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ka_ray.config import Config, RayConfig, TeachConfig
from ka_ray.config.load import load_images
from ka_ray.distributed.evaluator import TEACHERS_ONLY
from ka_ray.errors import InputError
from ka_ray.metrics import Counts
from ka_ray.runs.setup import plan_run
from ka_ray.student import Student, load_student, save_student
from ka_ray.tracking import NullTracker
from ka_ray.workflows import evaluate as evaluate_module
from ka_ray.workflows import teach as teach_module
from ka_ray.workflows.evaluate import evaluate
from ka_ray.workflows.teach import TaughtTeacher


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of each of four classes, in folders."""
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photos" / f"class_{number % 4}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def student(tmp_path: Path, make_spec: Any) -> Path:
    network = Student(make_spec("plain", {"conv1": 4}, widths=[4]))
    save_student(network.eval(), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail as soon as a command opens Ray: what is wrong must be found before."""

    def refuse(*arguments: Any) -> Any:
        pytest.fail("Ray is opened")

    monkeypatch.setattr(evaluate_module, "connect", refuse)
    monkeypatch.setattr(teach_module, "open_context", refuse)


def rename(photos: Path, names: dict[str, str]) -> None:
    for old, new in names.items():
        (photos / old).rename(photos / new)


def write_list(photos: Path, kind: str, label: Callable[[str], str]) -> dict[str, Any]:
    """Write a list or a Parquet file of the images, and return the config of the source."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(photos.glob("*/*.png"))
    labels = [label(file.parent.name) for file in files]
    if kind == "parquet":
        table = pa.table({"image": [file.read_bytes() for file in files], "label": labels})
        pq.write_table(table, photos.parent / "rows.parquet", row_group_size=7)
        return {"source": "parquet", "path": str(photos.parent / "rows.parquet"), "label_column": "label"}
    with (photos.parent / "list.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "label"), *zip(map(str, files), labels, strict=True)])
    return {"source": "list", "path": str(photos.parent / "list.csv"), "label_column": "label"}


ALL_OTHER = {f"class_{i}": f"klasse-{i}" for i in range(4)}


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("kind", ["folder", "list", "parquet"])
def test_evaluate_refuses_images_of_which_no_label_is_a_class(photos: Path, student: Path, kind: str) -> None:
    if kind == "folder":
        rename(photos, ALL_OTHER)
        tree: dict[str, Any] = {"source": "folder", "path": str(photos)}
    else:
        tree = write_list(photos, kind, lambda name: ALL_OTHER[name])
    with pytest.raises(
        InputError, match=r"none of the labels of 24 images is a class of the student: the lab"
    ):
        evaluate(student, load_images({"size": 8, **tree}))


@pytest.mark.usefixtures("no_cluster")
def test_evaluate_refuses_images_without_labels(photos: Path, student: Path) -> None:
    with pytest.raises(
        InputError, match=r"none of the 24 images has a label, so .* set what holds the labels"
    ):
        evaluate(
            student, load_images({"size": 8, "source": "folder", "path": str(photos), "labelled": False})
        )
    tree = write_list(photos, "list", lambda name: "")
    with pytest.raises(
        InputError, match=r"none of the 24 images has a label, so no accuracy can be measured$"
    ):
        evaluate(student, load_images({"size": 8, **tree}))


@pytest.mark.usefixtures("no_cluster")
def test_the_command_ends_with_the_code_of_bad_input(photos: Path, student: Path) -> None:
    from ka_ray.cli import main

    rename(photos, ALL_OTHER)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(student), "--images", str(photos)])
    assert ended.value.code == 2


def teach_config(photos: Path, tmp_path: Path, **evaluation: Any) -> TeachConfig:
    images = {"source": "folder", "path": str(photos), "size": 8}
    tree = {
        "name": "teach",
        "images": images,
        "evaluation": {"images": {**images, **evaluation}},
        "teacher": {
            "name": "a",
            "network": "plain",
            "arguments": {"widths": [4]},
            "classes": ["class_0", "class_1"],
            "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01},
        },
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "teach.yaml").write_text(yaml.safe_dump(tree))
    return TeachConfig.load(tmp_path / "teach.yaml", [])


@pytest.mark.usefixtures("no_cluster")
def test_teach_refuses_a_class_without_an_image_before_it_starts(photos: Path, tmp_path: Path) -> None:
    rename(photos, {"class_1": "Class_1"})
    with pytest.raises(
        InputError, match=r"teacher a: no image is labelled 'class_1'; the labels are 'Class_1"
    ):
        teach_module.teach(teach_config(photos, tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_cluster")
def test_teach_refuses_evaluation_images_of_which_no_label_is_a_class(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (photos / "class_3").rename(tmp_path / "test" / "klasse-0")
    with pytest.raises(InputError, match="none of the labels of 6 images is a class of teacher a"):
        teach_module.teach(teach_config(photos, tmp_path, path=str(tmp_path / "test")))


def with_images(load_config: Any, photos: Path, **keys: Any) -> Config:
    images = yaml.safe_dump(
        {"source": "folder", "path": str(photos), "size": 8, **keys}, default_flow_style=True
    )
    config: Config = load_config(f"evaluation.images={images.strip()}")
    return config


def test_a_run_refuses_evaluation_images_of_which_no_label_is_a_class(load_config: Any, photos: Path) -> None:
    with pytest.raises(
        InputError, match=r"none of the labels .* of the student.*labelled: false for folders"
    ):
        plan_run(with_images(load_config, photos))
    assert plan_run(with_images(load_config, photos, labelled=False)).evaluation_images.ids.shape == (24,)


def test_a_run_says_which_evaluation_images_are_left_out(load_config: Any, photos: Path) -> None:
    rename(photos, {"class_0": "digit_0", "class_1": "digit-1", "class_2": "digit_9", "class_3": "digit_5"})
    notes = plan_run(with_images(load_config, photos)).notes
    (note,) = [note for note in notes if note.startswith("evaluation: ")]
    assert (
        "6 of 24 images are left out, because their labels are no classes of the student: 'digit-1' (6; "
        in note
    )
    assert "No image is labelled 'digit_1', 'digit_2', 'digit_3'" in note


@pytest.mark.ray
def test_two_renamed_folders_are_named_and_counted(photos: Path, student: Path) -> None:
    """Once, two folders were renamed, and the accuracy of the others looked like that of all."""
    images = {"size": 8, "resize": "squash", "source": "folder", "path": str(photos)}
    ray = RayConfig(num_cpus=1)
    whole = evaluate(student, load_images(images), ray)
    assert (whole.images, whole.labelled, whole.unmatched, whole.missing) == (24, 24, {}, [])
    correct = count_correct(student, photos)
    assert whole.union == pytest.approx(sum(correct.values()) / 24)
    rename(photos, {"class_1": "Class_1", "class_2": "zwei"})
    (photos / "zwei" / "02.png").unlink()
    accuracy = evaluate(student, load_images(images), ray)
    assert accuracy.unmatched == {"Class_1": 6, "zwei": 5}
    assert accuracy.missing == ["class_1", "class_2"]
    assert (accuracy.images, accuracy.labelled) == (23, 12)
    assert accuracy.union == pytest.approx((correct["class_0"] + correct["class_3"]) / 12)


def count_correct(folder: Path, photos: Path) -> dict[str, int]:
    """Count what a student gets right, one image after another."""
    student = load_student(folder, trust=True).eval()
    correct = dict.fromkeys(student.spec.classes, 0)
    for path in sorted(photos.glob("*/*.png")):
        pixels = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())[None]
        with torch.inference_mode():
            correct[path.parent.name] += (
                student.spec.classes[int(student(pixels).argmax())] == path.parent.name
            )
    return correct


def test_teach_says_what_its_accuracy_leaves_out(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other two classes are another teacher's; one of them is misspelled, which nobody can know."""
    notes: list[str] = []
    context = SimpleNamespace(
        notify=lambda *lines: notes.extend(filter(None, lines)),
        tracker=NullTracker(),
        track_images=lambda *_: nullcontext(lambda images: None),
        resources=SimpleNamespace(placement=None),
        folder=tmp_path / "out",
    )
    monkeypatch.setattr(teach_module, "open_context", lambda *_: nullcontext(context))
    monkeypatch.setattr(teach_module, "train_teachers", lambda *_: None)
    monkeypatch.setattr(teach_module, "pools_of", lambda *_: None)
    counted = {TEACHERS_ONLY: Counts.zeros(2, 1)}, {"images": 12, "learned_images": 0}
    monkeypatch.setattr(teach_module, "evaluate_images", lambda *_: counted)
    rename(photos, {"class_3": "Class_3"})
    (photos / "class_0" / "._00.png").write_bytes(b"")
    result = teach_module.teach(teach_config(photos, tmp_path))
    assert result.left_out == {"Class_3": 6, "class_2": 6}
    assert TaughtTeacher.model_validate_json((tmp_path / "out" / "teacher.json").read_text()) == result
    [note] = [note for note in notes if "left out, because" in note]
    assert "12 of 24 images are left out, because their labels are no classes of teacher a" in note
    assert f"{photos}: left out hidden files and folders: 1 ._*" in notes
