"""Measure extraction and joint learning on a CUDA GPU, against bare torch and the card's own limits.

    .venv/bin/python benchmarks/gpu.py [--full] [--output FILE]

Uses no Ray: the functions that its workers call are called here, in one process. Each figure stands beside
that of bare torch from the same run; the two alternate, and medians are printed. `--output` writes all
figures as JSON. Without a GPU it says so and measures nothing.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from joint_loops import NUM_CLASSES, Work, learn_bare, learn_jointly, make_store
from PIL import Image
from torch import Tensor

from ka_ray.config import Preprocessing, ScoresConfig
from ka_ray.images.views import IMAGE
from ka_ray.numerics.mixed_precision import Precision, autocast
from ka_ray.teachers import Teacher
from ka_ray.teachers.preprocess import Preprocess
from ka_ray.teachers.reading import ReadSpec, read_teacher

CUDA = torch.device("cuda")
NETWORKS = {
    "tf_efficientnet_lite0": (128, ("blocks.2", "blocks.4", "blocks.6")),
    "resnet50": (224, ("layer2", "layer3", "layer4")),
}
"""Network -> size of its images in pixels, and the modules that are read as taps."""

Figures = dict[str, float]


def measure_seconds(calls: dict[str, Callable[[], Any]], rounds: int = 5) -> Figures:
    """Return the median seconds of each call; they alternate, and each is called twice before."""
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if number >= 2:
                measured[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def per_second(amount: float, seconds: Figures) -> Figures:
    return {name: amount / value for name, value in seconds.items()}


def measure_card() -> Figures:
    """Return what the card and its link to memory can do: TFLOP/s of a product, GB/s of copies."""
    a, b = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    plain = torch.randint(0, 255, (2**28,), dtype=torch.uint8)
    pinned, there = plain.pin_memory(), plain.cuda()
    copies: dict[str, Callable[[], Any]] = {
        "copy to the card, GB/s": lambda: plain.cuda(),
        "copy to the card, pinned, GB/s": lambda: pinned.cuda(non_blocking=True),
        "copy from the card, GB/s": lambda: there.cpu(),
        "copy from the card, pinned, GB/s": lambda: pinned.copy_(there, non_blocking=True),
    }
    product = {"bf16 product, TFLOP/s": lambda: a @ b}
    return per_second(2e-12 * 8192**3, measure_seconds(product)) | per_second(
        plain.numel() / 1e9, measure_seconds(copies)
    )


def measure_forward(name: str, batch: int, full: bool) -> Figures:
    """Return images/s of bare forward passes over images that are on the card: the limit of extraction."""
    size, _ = NETWORKS[name]
    calls: dict[str, Callable[[], Any]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for memory in (torch.contiguous_format, torch.channels_last):
            network = timm.create_model(name, num_classes=NUM_CLASSES).eval().requires_grad_(False)
            network = network.to(CUDA, dtype).to(memory_format=memory)
            images = torch.randn(batch, 3, size, size, device=CUDA, dtype=dtype).to(memory_format=memory)
            label = f"{str(dtype)[6:]}, {str(memory)[6:].replace('_format', '').replace('_', ' ')}"
            calls[label] = lambda network=network, images=images: network(images)  # type: ignore[misc]
            if full and memory is torch.channels_last:
                compiled = torch.compile(network)
                calls[f"{label}, compiled"] = lambda call=compiled, images=images: call(images)  # type: ignore[misc]
    with torch.inference_mode():
        return per_second(batch, measure_seconds(calls))


def make_teacher(name: str) -> Teacher:
    network = timm.create_model(name, num_classes=NUM_CLASSES).eval().requires_grad_(False)
    classes = tuple(f"class_{i}" for i in range(NUM_CLASSES))
    return Teacher("t", classes, network, Preprocess(Preprocessing()).eval()).to(CUDA)


def measure_extraction(name: str, batch: int) -> Figures:
    """Return images/s of what a teacher's actor does to a batch of arrays, and of the same in bare torch."""
    size, modules = NETWORKS[name]
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    teacher, taps = make_teacher(name), {path.replace(".", "_"): path for path in modules}
    features, _ = teacher.features(torch.from_numpy(images[:1]).cuda(), taps)
    spaces = {tap: tuple(feature.shape[2:]) for tap, feature in features.items()}
    readings = {
        "scores": ReadSpec({}, {}, ScoresConfig()),
        "scores and three taps": ReadSpec({"t": taps}, spaces, ScoresConfig()),
    }

    def bare(amp: Precision, hooked: tuple[str, ...]) -> None:
        kept: list[Tensor] = []
        handles = [
            teacher.network.get_submodule(path).register_forward_hook(
                lambda _, __, out: kept.append(out.half())
            )
            for path in hooked
        ]
        x = torch.from_numpy(images).cuda().float().to(memory_format=torch.channels_last)
        with torch.inference_mode(), autocast(CUDA, amp):
            scores = teacher.network((x / 255 - 0.5) / 0.5)
        _ = scores.cpu(), [feature.contiguous().cpu() for feature in kept]
        for handle in handles:
            handle.remove()

    calls: dict[str, Callable[[], Any]] = {}
    for what, reading in readings.items():
        for amp in ("none", "bf16", "fp16"):
            calls[f"{what}, {amp}"] = lambda reading=reading, amp=amp: read_teacher(  # type: ignore[misc]
                teacher, {IMAGE: images}, reading, amp
            )
            hooked = modules if reading.paths else ()
            calls[f"{what}, {amp}, bare"] = lambda amp=amp, hooked=hooked: bare(amp, hooked)  # type: ignore[misc]
    return per_second(batch, measure_seconds(calls))


def measure_joint(name: str, batch: int, rows: int, rounds: int, full: bool) -> Figures:
    """Return images/s of joint learning, and of a bare loop."""
    work = Work(f"timm/{name}", NETWORKS[name][0], batch, rows)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", work)
        calls: dict[str, Callable[[], float]] = {}
        for amp in ("none", "bf16"):
            calls[f"{amp}"] = lambda amp=amp: learn_jointly(work, store, CUDA, amp, False)  # type: ignore[misc]
            for memory in (torch.contiguous_format, torch.channels_last):
                label = f"{amp}, bare, {str(memory)[6:].replace('_format', '').replace('_', ' ')}"
                calls[label] = lambda amp=amp, memory=memory: learn_bare(work, store, CUDA, amp, memory)  # type: ignore[misc]
            if full:
                calls[f"{amp}, compiled"] = lambda amp=amp: learn_jointly(work, store, CUDA, amp, True)  # type: ignore[misc]
        measured: dict[str, list[float]] = {label: [] for label in calls}
        for _ in range(rounds):
            for label, call in calls.items():
                measured[label].append(call())
    return {label: statistics.median(found) for label, found in measured.items()}


def measure_decoding(size: int = 256, count: int = 256) -> Figures:
    """Return JPEG files decoded a second: on one core, and by the card."""
    rng, files = np.random.default_rng(0), list[bytes]()
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        buffer = BytesIO()
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    calls: dict[str, Callable[[], Any]] = {
        "Pillow, one core": lambda: [np.asarray(Image.open(BytesIO(file)).convert("RGB")) for file in files],
        "torchvision, one core": lambda: [torchvision.io.decode_jpeg(file) for file in data],
        "torchvision on the card": lambda: torchvision.io.decode_jpeg(data, device=CUDA),
    }
    return per_second(count, measure_seconds(calls))


def main() -> None:
    """Measure everything, and print one table for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="also compiled networks")
    parser.add_argument("--output", type=Path, help="file for all figures, as JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("unmeasured: torch finds no CUDA GPU on this machine")
    torch.set_num_threads(1)
    results: dict[str, Any] = {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(f"{results['card']}, torch {results['torch']}")
    lite, resnet = NETWORKS
    parts: dict[str, Callable[[], Figures]] = {
        "limits of the card": measure_card,
        "JPEG files of 256 x 256 pixels/s": measure_decoding,
    }
    for name in NETWORKS:
        parts[f"{name}, bare forward passes of 256, images/s"] = lambda name=name: measure_forward(  # type: ignore[misc]
            name, 256, arguments.full
        )
        for batch in (64, 256):
            parts[f"{name}, extraction in batches of {batch}, images/s"] = (
                lambda name=name, batch=batch: measure_extraction(name, batch)  # type: ignore[misc]
            )
    for name, batch, rows, rounds in ((lite, 32, 1024, 3), (lite, 256, 4096, 3), (resnet, 64, 1024, 1)):
        parts[f"{name}, joint learning in batches of {batch}, images/s"] = (
            lambda name=name, batch=batch, rows=rows, rounds=rounds: measure_joint(  # type: ignore[misc]
                name, batch, rows, rounds, arguments.full
            )
        )
    for title, measure in parts.items():
        began = time.perf_counter()
        results[title] = measure()
        print(f"\n{title}  ({time.perf_counter() - began:.0f} s)")
        for label, value in results[title].items():
            print(f"  {label:<40} {value:>12,.1f}", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
