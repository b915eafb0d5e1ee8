"""Runs in which transformers teach a conv network, and conv networks teach transformers, end to end."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import ka_ray
from ka_ray.teachers import build_network

# Other tests plan, cut and train these networks without Ray.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]

TIMM = "timm:create_model"
VIT = {"model_name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2}
SWIN = {"model_name": "swin_tiny_patch4_window7_224", "img_size": 32, "window_size": 4, "embed_dim": 16}
NETWORKS = {
    # Name -> network, arguments, early and late tap.
    "vit": (TIMM, {**VIT, "num_heads": 4}, "blocks.0", "blocks.1"),
    "swin": (TIMM, {**SWIN, "depths": [1, 1], "num_heads": [1, 2]}, "layers.0", "layers.1"),
    "convnext": (TIMM, {"model_name": "convnext_atto"}, "stages.0", "stages.1"),
    "resnet": ("resnet18", {}, "layer1", "layer2"),
    "plain": ("plain", {"widths": [16, 32]}, "norm1", "norm2"),
}
RUNS = {
    "transformers teach a conv network": (["vit", "swin", "convnext"], "plain"),
    "convs teach a vit": (["resnet", "plain"], "vit"),
    "convs teach a swin": (["resnet", "plain"], "swin"),
    "convs teach a convnext": (["resnet", "plain"], "convnext"),
}


def describe_network(name, num_classes):
    network, arguments, *_ = NETWORKS[name]
    return network, arguments | ({"num_classes": num_classes} if network == TIMM else {})


def describe_run(folder, teachers, student):
    described = []
    for i, name in enumerate(teachers):
        classes = [f"digit_{k}" for k in range(3 * i, 3 * i + 3)]
        network, arguments = describe_network(name, 3)
        built = build_network(network, arguments, 3)
        save_file(built.state_dict(), folder / f"{name}.safetensors")
        described.append(
            {"name": name, "network": network, "arguments": arguments, "classes": classes}
            | {"checkpoint": str(folder / f"{name}.safetensors")}
        )
    network, arguments = describe_network(student, 3 * len(teachers))
    everyone = [*teachers, "student"]
    taps = {
        tap: {key: NETWORKS[student if key == "student" else key][at] for key in everyone}
        for tap, at in (("early", 2), ("late", 3))
    }
    return {
        "name": "tokens",
        "output": str(folder / "run"),
        "images": {"source": "digits", "size": 32, "limit": 160},
        "teachers": described,
        "student": {"network": network, "arguments": arguments},
        "taps": taps,
        "codes": {"epochs": 1, "batch_size": 16},
        "layers": {"epochs": 2, "batch_size": 16},
        "joint": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3},
        "ray": {"workers": 1},
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_student_learns_from_networks_of_other_kinds(tmp_path, name, monkeypatch):
    import mlflow

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(describe_run(tmp_path, *RUNS[name])))
    report = ka_ray.amalgamate(ka_ray.Config.load(tmp_path / "run.yaml"))
    for stage in ("layers", "joint"):
        history = json.loads((tmp_path / "run" / "stages" / f"{stage}.json").read_text())["history"]
        for tap, first in history[0]["losses"].items():
            last = history[-1]["losses"][tap]
            assert math.isfinite(last)
            assert last < first, (stage, tap)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    with torch.inference_mode():
        expected = ka_ray.load_student(tmp_path / "run")(torch.from_numpy(pixels))
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    predictions = ka_ray.predict(tmp_path / "run", paths)
    assert [p.class_name for p in predictions] == [report.classes[i] for i in expected.argmax(dim=1)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(report.mlflow.tracking_uri))
    model = mlflow.pyfunc.load_model(f"runs:/{report.mlflow.run_id}/student")
    np.testing.assert_allclose(model.predict(pixels.astype(np.float32)), expected.numpy(), atol=1e-4)
