"""Solve a student of two ViTs, or of two ConvNeXts, that were trained from different random weights.

    .venv/bin/python benchmarks/exact_token_pairs.py [--kinds vit convnext] [--seeds N] [--images N]

The teachers are small and learn the halves of scikit-learn's handwritten digits at 16 pixels. No Ray, no
gradient step and no label is used for the student. Prints the accuracy on all ten digits, on 500 images that
nobody has learned, of the student and of the ensemble, and the seconds of the solver on one thread.
"""

import argparse
import time
from collections.abc import Callable

import timm.models.vision_transformer
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Preprocessing
from ka_ray.student.block_solver import BlockSolverSettings, solve_student
from ka_ray.teachers import Preprocess, Teacher

SIZE, NUM_TEST, BATCH_SIZE = 16, 500, 32


def build_vit(classes: int) -> nn.Module:
    """Build a ViT with 4 blocks."""
    sizes = {"img_size": SIZE, "patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 4}
    return timm.models.vision_transformer.VisionTransformer(num_classes=classes, **sizes)


def build_convnext(classes: int) -> nn.Module:
    """Build a ConvNeXt with 4 blocks and patches of 2 pixels."""
    stage = torchvision.models.convnext.CNBlockConfig
    stages = [stage(24, 32, 2), stage(32, None, 2)]
    network = torchvision.models.ConvNeXt(stages, num_classes=classes, layer_scale=0.1)
    network.features[0][0] = nn.Conv2d(3, 24, 2, 2)
    return network


BUILDERS: dict[str, Callable[[int], nn.Module]] = {"vit": build_vit, "convnext": build_convnext}


def read_digits(seed: int) -> tuple[Tensor, Tensor]:
    """Return all images `[B, 3, 16, 16]` and their labels in random order."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    pixels = functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear").expand(-1, 3, -1, -1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    return (255 * pixels).round().to(torch.uint8)[order], torch.from_numpy(digits.target)[order]


def train(network: nn.Module, inputs: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Train a teacher on one half of the classes."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * (len(inputs) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(BATCH_SIZE)[: len(inputs) // BATCH_SIZE]:
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def measure(kind: str, seed: int, num_images: int, epochs: int) -> str:
    """Train the teachers of a seed, solve their student, and return a row of the table."""
    images, labels = read_digits(seed)
    statistics = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, size=SIZE, crop=SIZE)
    preprocess, teachers = Preprocess(statistics), list[Teacher]()
    for half in (0, 1):
        torch.manual_seed(2 * seed + half)
        own = (labels // 5 == half) & (torch.arange(len(labels)) >= NUM_TEST)
        network = train(BUILDERS[kind](5), preprocess(images[own]), labels[own] % 5, epochs)
        classes = tuple(str(digit) for digit in range(5 * half, 5 * half + 5))
        teachers.append(Teacher(f"half_{half}", classes, network, preprocess))
    names = [*(teacher.name for teacher in teachers), "student"]
    batches = [dict.fromkeys(names, part) for part in images[NUM_TEST:][:num_images].split(100)]
    label_sets, began = LabelSets({t.name: t.classes for t in teachers}), time.perf_counter()
    settings = BlockSolverSettings(images=num_images)
    student, _ = solve_student(
        BUILDERS[kind](10), preprocess, teachers, label_sets, batches, settings=settings
    )
    seconds = time.perf_counter() - began
    test = images[:NUM_TEST]
    ensemble = torch.cat([teacher.scores(test) for teacher in teachers], dim=1)
    with torch.no_grad():
        scores = student(preprocess(test))
    unions = [float((s.argmax(1) == labels[:NUM_TEST]).float().mean()) for s in (scores, ensemble)]
    figures = [f"{value:.3f}" for value in (*unions, unions[0] / unions[1])]
    return " | ".join([f"| {kind}", str(seed), *figures, f"{seconds:.1f} |"])


def main() -> None:
    """Print a row for each kind of network and each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--images", type=int, default=1000, help="number of images that students are solved on"
    )
    parser.add_argument("--epochs", type=int, default=15, help="number of epochs of the teachers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | seed | student | ensemble | x ensemble | seconds |\n|---|--:|--:|--:|--:|--:|")
    for kind in arguments.kinds:
        for seed in range(arguments.seeds):
            print(measure(kind, seed, arguments.images, arguments.epochs), flush=True)


if __name__ == "__main__":
    main()
