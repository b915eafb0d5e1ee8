"""Runs of teachers that are one line of a config: what people have on disk becomes one student."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

import ka_ray
from ka_ray.features.store import FEATURES, Store
from ka_ray.images import open_source
from ka_ray.runs.setup import plan_run

PETS, BIRDS = ["beagle", "pug", "tabby"], ["jay", "owl"]
CIFAR10 = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def save_models(folder: Path) -> dict[str, torch.nn.Module]:
    """Write the files of three teachers, and return the networks that they are of."""
    torch.manual_seed(0)
    pets = timm.create_model("mobilenetv3_small_050", num_classes=len(PETS))
    save_for_hf(
        pets, str(folder / "hf" / "pets"), model_config={"label_names": PETS}, safe_serialization=True
    )
    birds = torchvision.models.squeezenet1_1(num_classes=len(BIRDS))
    weights = {f"net.{key}": value for key, value in birds.state_dict().items()}
    lightning = {"pytorch-lightning_version": "2.6.0", "state_dict": weights, "classes": BIRDS, "epoch": 7}
    torch.save(lightning, folder / "birds.ckpt")
    # A file of a published repository, and the constructor in the user's own module beside the config.
    shutil.copy(Path(__file__).parents[1] / "teachers" / "resnet20.py", folder / "my_resnet.py")
    sys.path.insert(0, str(folder))
    from my_resnet import resnet20

    sys.path.remove(str(folder))
    cifar = resnet20()
    for module in cifar.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    old = {f"module.{key}": value for key, value in cifar.state_dict().items() if "num_batches" not in key}
    torch.save({"state_dict": old, "best_prec1": 92.6}, folder / "resnet20.th")
    return {"pets": pets.eval(), "birds": birds.eval(), "cifar": cifar.eval()}


def save_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(24):
        height, width = rng.integers(60, 300, 2)
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((int(width), int(height))).save(folder / f"{number}.jpg")


TWO = """\
name: two
images: {source: folder, path: photos, labelled: false, size: 64}
teachers: [hf/pets, birds.ckpt]
taps:
  early: {pets: blocks.1, birds: features.4, student: conv1}
  late: {pets: blocks.4, birds: features.12, student: conv2}
student: {network: plain, arguments: {widths: [8, 16]}, preprocessing: {size: 32}}
"""

QUICK = """\
student: {network: plain, arguments: {widths: [8, 16]}, preprocessing: {size: 32}}
codes: {epochs: 1, batch_size: 8}
layers: {epochs: 1, batch_size: 8}
joint: {epochs: 1, batch_size: 8}
ray: {workers: 1}
tracking: {backend: none}
"""

THREE = """\
name: three
images: {source: folder, path: photos, labelled: false, size: 64}
teachers:
  - hf/pets
  - birds.ckpt
  - from: resnet20.th
    name: cifar
    network: my_resnet:resnet20
    classes: [plane, car, bird, cat, deer, dog, frog, horse, ship, truck]
    preprocessing: {preset: cifar, resize: squash}
taps:
  early: {pets: blocks.1, birds: features.4, cifar: layer1, student: conv1}
  late: {pets: blocks.4, birds: features.12, cifar: layer2, student: conv2}
"""

MERGED = """\
name: again
images: {source: folder, path: photos, labelled: false, size: 64}
teachers: [runs/three, hf/more]
taps:
  early: {three: stages.early, more: blocks.1, student: conv1}
  late: {three: stages.late, more: blocks.4, student: conv2}
"""


def test_two_one_line_teachers_are_planned(tmp_path, monkeypatch):
    """All of a run that needs no Ray."""
    monkeypatch.chdir(tmp_path)
    save_models(tmp_path)
    save_photos(tmp_path / "photos")
    (tmp_path / "two.yaml").write_text(TWO)
    assert len(TWO.splitlines()) <= 8
    planned = plan_run(ka_ray.Config.load("two.yaml", ["joint.batch_size=8", "codes.batch_size=8"]))
    assert planned.plan.spec.classes == (*PETS, *BIRDS)
    assert planned.plan.channels == {"early": (16, 128), "late": (48, 512)}
    assert planned.plan.views.teachers["pets"].crop == 224
    assert planned.plan.views.teachers["birds"].crop == 64
    shown = "\n".join(planned.notes)
    assert "teacher pets: a model of timm" in shown
    assert "network recognised by its weights; it has 2 classes" in shown


def ka_ray_command(*arguments: str, cwd: Path) -> str:
    command = [Path(sys.executable).with_name("ka-ray"), *arguments]
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_what_people_have_is_merged_and_merged_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    networks = save_models(tmp_path)
    save_photos(tmp_path / "photos")
    (tmp_path / "configs").mkdir()
    shutil.move(
        tmp_path / "my_resnet.py", tmp_path / "configs"
    )  # beside the config, not in the current folder
    (tmp_path / "configs" / "three.yaml").write_text(THREE + QUICK)
    printed = ka_ray_command("run", "configs/three.yaml", cwd=tmp_path)
    for line in ("teacher pets: a model of timm", "checkpoint: state_dict; prefix 'module.' removed"):
        assert line in printed

    store = Store(tmp_path / "runs" / "three" / FEATURES)
    config = ka_ray.Config.load("configs/three.yaml")
    listed = [path for chunk in open_source(config.images).chunks for path, _ in chunk.payload]
    photos = [Image.open(listed[image_id]).convert("RGB") for image_id in store.image_ids]
    norm = torchvision.transforms.Normalize
    tv = torchvision.transforms
    transforms = {
        "pets": create_transform(**resolve_data_config({}, model=networks["pets"]), is_training=False),
        "birds": tv.Compose(
            [
                tv.Resize(64),
                tv.CenterCrop(64),
                tv.ToTensor(),
                norm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        ),
        "cifar": tv.Compose(
            [tv.Resize((32, 32)), tv.ToTensor(), norm((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))]
        ),
    }
    with torch.inference_mode():
        expected = [
            network(torch.stack([transforms[name](photo) for photo in photos]))
            for name, network in networks.items()
        ]
    scores = store.gather(["scores"], np.arange(len(store)))["scores"]
    np.testing.assert_allclose(scores, torch.cat(expected, dim=1), rtol=2e-3, atol=2e-3)

    more = timm.create_model("mobilenetv3_small_050", num_classes=2)
    labels = {"label_names": ["ant", "bee"]}
    save_for_hf(more, str(tmp_path / "hf" / "more"), model_config=labels, safe_serialization=True)
    (tmp_path / "again.yaml").write_text(MERGED + QUICK)
    printed = ka_ray_command("run", "again.yaml", cwd=tmp_path)
    assert "teacher three: a student of ka_ray" in printed
    assert ka_ray.load_student(tmp_path / "runs" / "again").spec.classes == (
        *PETS,
        *BIRDS,
        *CIFAR10,
        "ant",
        "bee",
    )
