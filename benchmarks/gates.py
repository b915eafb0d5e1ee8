"""Merge teachers of CIFAR-10 with every gate: how much of the gap to an oracle is closed?

    .venv/bin/python benchmarks/gates.py [--setting NAME ...] [--output DIR] [--data DIR] [--seeds N]

The gap is that between the ensemble, in which the teacher with the higher scores owns an image, and an
oracle that knows every owner. Gates learn without owners (`self`), from 30 images of known owner of each
teacher among those that the student learns from (`hints`), and from all of them (`known`); `auto` decides by
itself. Classes are never known. Students have the default start and joint learning.

Settings: pairs of EfficientNets that were fine-tuned from ImageNet, trained like those of
benchmarks/finetuned_pair.py and shared with it; and two, three and five small networks that were trained from
random weights on 30,000 images. In the settings `..._9_to_1` nine of ten images that the student learns from
are the first teacher's; the test images are as in the other settings. In `..._described`, gates also see the
embedding of the ImageNet network. In `..._and_nobody`, the images that the student learns from hold sign
digits, too, which no teacher knows.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from finetuned_pair import (
    ANIMALS,
    CIFAR10,
    PAIRS,
    SIGNS,
    SIZE,
    describe_images,
    save_animals,
    save_imagenet_weights,
    train_teachers,
)

from ka_ray import Config, compare
from ka_ray.config import NOBODY, TeachConfig
from ka_ray.workflows.teach import teach

PLAIN = {
    "plain_halves": {"a": CIFAR10[:5], "b": CIFAR10[5:]},
    "plain_three": {"a": CIFAR10[:3], "b": CIFAR10[3:6], "c": CIFAR10[6:]},
    "plain_five": {name: CIFAR10[2 * i : 2 * i + 2] for i, name in enumerate("abcde")},
}
FINETUNED = {"finetuned_halves": "halves", "finetuned_animals_and_signs": "animals_and_signs"}
SETTINGS = (
    *FINETUNED,
    *PLAIN,
    "finetuned_halves_9_to_1",
    "plain_halves_9_to_1",
    "finetuned_halves_described",
    "finetuned_halves_and_nobody",
)
HINTS, FINETUNED_POOL, PLAIN_POOL, TEST_IMAGES, NOBODYS = 30, 3000, 15_000, 2000, 1000
COLUMNS = {"hints": "owner_of_some", "known": "owner_of_all"}


def read_cifar10(data: Path, split: str) -> list[tuple[bytes, str]]:
    """Return the encoded images of CIFAR-10 with the names of their classes."""
    table = pyarrow.parquet.read_table(sorted((data / "cifar10").glob(f"{split}-*.parquet")))
    images, labels = table["image"].to_pylist(), table["label"].to_pylist()
    return [(image, CIFAR10[label]) for image, label in zip(images, labels, strict=True)]


def read_signs(data: Path, split: str) -> list[tuple[bytes, str]]:
    """Return the encoded images of sign digits with the names of their classes."""
    folders = [data / "sign-digits" / split / name for name in SIGNS]
    return [(path.read_bytes(), folder.name) for folder in folders for path in sorted(folder.iterdir())]


def choose(images: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Choose images at random."""
    order = np.random.default_rng(seed).permutation(len(images))[:count]
    return [images[i] for i in sorted(order)]


def read_images(setting: str, data: Path, seed: int) -> tuple[list[Any], list[Any]]:
    """Return the images that students learn from, and those that they are tested on."""
    train, test = read_cifar10(data, "train"), read_cifar10(data, "test")[:TEST_IMAGES]
    if "signs" in setting:
        train, test = ([row for row in rows if row[1] in ANIMALS] for rows in (train, test))
        # What the teachers were trained on: benchmarks/finetuned_pair.py takes the first animals.
        train = train[:3500] + read_signs(data, "train")
        return choose(train, FINETUNED_POOL, seed), test[:1000] + read_signs(data, "test")
    if setting.startswith("plain"):
        return choose(train[30000:], PLAIN_POOL, seed), test
    pool = choose(choose(train, 5000, seed), FINETUNED_POOL, 0)
    if setting.endswith("_and_nobody"):
        pool += choose(read_signs(data, "train"), NOBODYS, seed)
    return pool, test


def write_images(path: Path, images: Sequence[tuple[bytes, str]], teachers: dict[str, Sequence[str]]) -> None:
    """Write a Parquet file with images, labels, and the owners of some and of all of them."""
    owner_of = {name: teacher for teacher, names in teachers.items() for name in names}
    owners = [owner_of.get(label, NOBODY) for _, label in images]
    left = dict.fromkeys([*teachers, NOBODY], HINTS)
    some = []
    for owner in owners:
        left[owner] -= 1
        some.append(owner if left[owner] >= 0 else "")
    columns = {
        "image": [image for image, _ in images],
        "label": [label for _, label in images],
        COLUMNS["hints"]: some,
        COLUMNS["known"]: owners,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def nine_to_one(images: Sequence[tuple[bytes, str]], first: Sequence[str]) -> list[tuple[bytes, str]]:
    """Leave out images of the other teachers until the first one owns nine of ten."""
    own = sum(label in first for _, label in images)
    kept, others = [], own // 9
    for image in images:
        others -= image[1] not in first
        if image[1] in first or others >= 0:
            kept.append(image)
    return kept


def train_plain_teachers(setting: str, seed: int, data: Path, folder: Path) -> list[Any]:
    """Train small networks from random weights on the first 30,000 images; return the section `teachers`."""
    images = {"source": "parquet", "path": str(data / "cifar10"), "label_column": "label"}
    images |= {"classes": list(CIFAR10), "size": 32}
    sections = []
    for name, classes in PLAIN[setting].items():
        teacher = {
            "name": name,
            "network": "plain",
            "arguments": {"widths": [32, 64, 128]},
            "classes": list(classes),
            "preprocessing": {"preset": "cifar"},
        }
        training = {
            "epochs": 4,
            "batch_size": 128,
            "learning_rate": 0.005,
            "augment": {"flip": True, "shift": 4},
        }
        config = {
            "name": f"{setting}_{name}",
            "seed": seed,
            "output": str(folder / name),
            "images": images | {"files": "train-0000[0-2].parquet"},
            "evaluation": {"images": images | {"files": "test-*.parquet"}},
            "teacher": teacher | {"training": training},
            "tracking": {"backend": "none"},
        }
        taught = teach(TeachConfig.model_validate(config))
        print(f"teacher {name}, seed {seed}: {taught.accuracy:.3f}", flush=True)
        sections.append(teacher | {"checkpoint": taught.checkpoint})
    return sections


def make_config(setting: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the teachers of a setting, unless they stand, and write its images; return the config."""
    plain = setting.removesuffix("_9_to_1").removesuffix("_described").removesuffix("_and_nobody")
    pair = FINETUNED.get(plain, plain)
    folder = arguments.output / pair / f"seed_{seed}" / "teachers"
    if plain in PLAIN:
        teachers_of = PLAIN[plain]
        sections = train_plain_teachers(plain, seed, arguments.data, folder)
    else:
        teachers_of = PAIRS[pair]
        if pair == "animals_and_signs" and not (arguments.output / pair).exists():
            (arguments.output / pair).mkdir(parents=True)
            save_animals(arguments.data, arguments.output / pair)
        images = describe_images(pair, arguments.data, arguments.output / pair)
        sections = train_teachers(pair, seed, images, arguments.output / "imagenet.pt", folder)
    pool, test = read_images(setting, arguments.data, seed)
    if setting.endswith("_9_to_1"):
        pool = nine_to_one(pool, next(iter(teachers_of.values())))
    for name, rows in (("pool", pool), ("test", test)):
        write_images(arguments.output / setting / f"seed_{seed}" / f"{name}.parquet", rows, teachers_of)
    source = {"source": "parquet", "path": str(arguments.output / setting / f"seed_{seed}")}
    source |= {"label_column": "label", "size": 32 if plain in PLAIN else SIZE}
    described = {"network": "timm/tf_efficientnet_lite0", "preprocessing": {"size": SIZE}}
    described |= {"checkpoint": str(arguments.output / "imagenet.pt")}
    return {
        "name": setting,
        "scores": {"descriptive": described} if setting.endswith("_described") else {},
        "seed": seed,
        "images": source | {"files": "pool.parquet"},
        "evaluation": {"images": source | {"files": "test.parquet"}},
        "teachers": sections,
        "tracking": {"backend": "none"},
    }


def measure(setting: str, seed: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the accuracies: how owners are known -> row of the table -> accuracy."""
    folder = arguments.output / setting / f"seed_{seed}"
    figures = {}
    for known, gates in (("hints", arguments.gates), ("known", ["auto"])):
        path = folder / f"{known}.json"
        if not path.exists() and gates:
            config = make_config(setting, seed, arguments)
            images = config["images"] | {"owner_column": COLUMNS[known]}
            run = Config.model_validate(config | {"images": images, "output": str(folder / known)})
            rows = compare(run, ["start+joint"], 1, [f"scores.gate={','.join(gates)}"]).rows
            figures[known] = {row.label: row.union.values[0] for row in rows}
            figures[known]["oracle"] = find_oracle(rows[0].model_dump(), config["evaluation"]["images"], run)
            path.write_text(json.dumps(figures[known], indent=1))
        figures |= {known: json.loads(path.read_text())} if path.exists() else {}
    return figures


def find_oracle(ensemble: dict[str, Any], images: dict[str, Any], run: Config) -> float:
    """Return the accuracy of an ensemble that knows every owner, from those of the teachers."""
    table = pyarrow.parquet.read_table(f"{images['path']}/{images['files']}", columns=[COLUMNS["known"]])
    owners = table[COLUMNS["known"]].to_pylist()
    values = [ensemble["per_teacher"][t.name]["values"][0] * owners.count(t.name) for t in run.teachers]
    return sum(values) / len(owners)


def format_setting(setting: str, seeds: Sequence[dict[str, dict[str, float]]]) -> str:
    """Return the accuracies of all seeds as a Markdown table, with the share of the gap that each closes."""
    lines = [f"## {setting}", "", "| | accuracy | share of the gap closed |", "|---|--:|--:|"]
    for known in ("hints", "known"):
        found = [figures[known] for figures in seeds if known in figures]
        for label in found[0] if found else ():
            values = [one[label] for one in found]
            closed = [(one[label] - one["ensemble"]) / (one["oracle"] - one["ensemble"]) for one in found]
            name = label.replace("start+joint scores.gate=", "student, gate ")
            if known == "hints" or name not in ("ensemble", "oracle"):
                name += ", every owner known" if known == "known" else ""
                lines.append(f"| {name} | {format_values(values)} | {format_values(closed, 2)} |")
    return "\n".join(lines)


def format_values(values: Sequence[float], decimals: int = 3) -> str:
    """Return mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{deviation}"


def main() -> None:
    """Measure all seeds of the settings, and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="by default all")
    parser.add_argument("--output", type=Path, default=Path("runs/gates"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gates", nargs="*", default=["none", "self", "hints", "auto"], help="with 30 hints")
    arguments = parser.parse_args()
    arguments.output = arguments.output.resolve()
    arguments.data = arguments.data.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not (arguments.output / "imagenet.pt").exists():
        save_imagenet_weights(arguments.output / "imagenet.pt")
    for setting in arguments.setting or SETTINGS:
        seeds = [measure(setting, seed, arguments) for seed in range(arguments.seeds)]
        print(f"\n{format_setting(setting, seeds)}\n", flush=True)


if __name__ == "__main__":
    main()
