"""Two small teachers are merged by one command, and its config repeats the run."""

import json

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models import save_for_hf

import ka_ray
from ka_ray import Config, cli
from ka_ray.runs.setup import plan_run

CLASSES = {"pets": ["beagle", "pug", "tabby"], "birds": ["jay", "owl"]}
NAMES = [name for classes in CLASSES.values() for name in classes]
QUICK = ["--set", "joint.epochs=1", "--set", "tracking.backend=none", "--set", "ray.workers=0"]


def call(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 0


@pytest.mark.ray
def test_one_command_merges_two_teachers_and_its_config_repeats_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, classes in CLASSES.items():
        network = timm.create_model("mobilenetv3_small_050", num_classes=len(classes))
        labels = {"label_names": classes}
        save_for_hf(network, str(tmp_path / name), model_config=labels, safe_serialization=True)
    rng = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "photos" / NAMES[number % 5] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)

    pixels = "{size: 32, crop: 32}"
    small = [part for name in CLASSES for part in ("--set", f"teachers.{name}.preprocessing={pixels}")]
    call("merge", "pets", "birds", "--images", "photos", "--output", "runs/merged", *QUICK, *small)
    shown = capsys.readouterr().out
    assert shown.index("teacher pets: 3 classes") < shown.index("extracting scores: 27 images")
    report = json.loads((tmp_path / "runs" / "merged" / "report.json").read_text())
    assert report["accuracy"]["labelled"] == 3  # the folders are classes
    steps = [step["step"] for step in report["timeline"]]
    assert steps == [
        *("planning", "starting Ray", "opening MLflow", "extract", "learning start, joint", "evaluate"),
        "measuring sizes and speeds of networks",
    ]
    assert report["stages"]["extract"]["work"].keys() >= {"decode images", "run pets", "run birds"}
    assert ka_ray.load_student("runs/merged").spec.classes == tuple(NAMES)

    # The same command, or a run of the written config, would resume; another config would be refused.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    repeated = plan_run(Config.load(tmp_path / "runs" / "merged" / "merge.yaml")).config
    saved = json.loads((tmp_path / "runs" / "merged" / "config.json").read_text())
    assert repeated.model_dump(mode="json") == saved
