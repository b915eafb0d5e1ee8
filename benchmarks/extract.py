"""Measure the pass that stores teachers' scores against a bare loop of PyTorch, the start of processes apart.

    .venv/bin/python benchmarks/extract.py [--full] [--rounds N] [--output DIR]

Ray Data streams JPEG files through EfficientNet-Lite0s with random weights, one actor each. A pass over few
images is subtracted from one over many, so that starting processes does not count. The twin decodes the same
files with Pillow, runs the same networks on the same batches, and writes images and scores to files, in one
process with a thread per core. The files have just been written, so they come from memory, not from the disk.
"""

import dataclasses
import functools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from twins import Row, measure_in_turns, publish, read_arguments

from ka_ray.config import Config
from ka_ray.distributed.cluster import connect
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.resource_plan import plan_resources
from ka_ray.distributed.resources import pools_of
from ka_ray.images.split import split_images
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.reading import ReadSpec

BATCH, FEW, NUM_CLASSES = 64, 64, 5


@dataclasses.dataclass(frozen=True)
class Case:
    """What is extracted.

    Attributes:
        teachers: Number of teachers.
        size: Height and width of images and files, in pixels.
        images: Number of images.
    """

    teachers: int
    size: int
    images: int

    @property
    def label(self) -> str:
        """What the table calls it."""
        return f"{self.teachers} teacher{'s' if self.teachers > 1 else ''}, {self.size} px"


CASES = (Case(2, 128, 1024),)
ALL_CASES = (*(Case(n, 128, 2048 // n) for n in (1, 2, 4)), Case(2, 32, 8192), Case(2, 224, 512))
"""With --full."""


def write_files(folder: Path, case: Case) -> None:
    """Write JPEG files of coarse noise, which are about as large as photos."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(round(1.2 * case.images)):  # a tenth is held out
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((case.size, case.size)).save(folder / f"{number:05d}.jpg", quality=90)


def describe_run(case: Case, folder: Path) -> Config:
    """Return the config of a run with teachers that have random weights."""
    network, teachers = timm.create_model("tf_efficientnet_lite0", num_classes=NUM_CLASSES), []
    save_file(network.state_dict(), folder / "weights.safetensors")
    for number in range(case.teachers):
        teacher = {
            "name": f"t{number}",
            "network": "timm/tf_efficientnet_lite0",
            "classes": [f"{number}_{k}" for k in range(NUM_CLASSES)],
            "checkpoint": str(folder / "weights.safetensors"),
            "preprocessing": {"size": case.size},
        }
        teachers.append(teacher)
    images = {"source": "folder", "path": str(folder / "files"), "labelled": False, "size": case.size}
    return Config.model_validate({"name": "extract", "images": images, "teachers": teachers})


def extract_by_ray(config: Config, case: Case, folder: Path) -> float:
    """Return images/s of the pass, without what a pass over few images takes."""
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    images = split_images(config)[0]
    with connect(config.ray) as cluster:
        pools = pools_of(config, plan_resources(config, cluster).placement)
        seconds = []
        for number in (FEW, case.images):
            work = Extraction(
                images.with_ids(images.ids[:number]), Path(tempfile.mkdtemp(dir=folder)) / "out", 10_000
            )
            began = time.perf_counter()
            reading = ReadSpec({}, {}, config.scores, plan.views.teacher_columns)
            extract_features(work, config.teachers, pools, reading, lambda _: None)
            seconds.append(time.perf_counter() - began)
    return (case.images - FEW) / (seconds[1] - seconds[0])


@torch.inference_mode()
def extract_bare(config: Config, case: Case, folder: Path) -> float:
    """Return images/s of a plain loop."""
    networks = []
    for teacher in config.teachers:
        network = load_teacher(teacher).network.eval()
        networks.append(network.to(memory_format=torch.channels_last))
    files = sorted((folder / "files").iterdir())[: case.images]
    out = Path(tempfile.mkdtemp(dir=folder))
    began = time.perf_counter()
    for start in range(0, len(files), BATCH):
        arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
        pixels = np.stack(arrays).transpose(0, 3, 1, 2)
        x = torch.from_numpy(np.ascontiguousarray(pixels)).float().to(memory_format=torch.channels_last)
        x = (x / 255 - 0.5) / 0.5
        scores = torch.cat([network(x) for network in networks], dim=1).half()
        np.savez(out / f"{start}.npz", image=pixels, scores=scores.numpy())
    return len(files) / (time.perf_counter() - began)


def main() -> None:
    """Measure all cases."""
    arguments, rows = read_arguments(__doc__), list[Row]()
    for case in ALL_CASES if arguments.full else CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_files(folder / "files", case)
            config = describe_run(case, folder)
            ours, bare = (
                functools.partial(extract, config, case, folder) for extract in (extract_by_ray, extract_bare)
            )
            rows += measure_in_turns({case.label: (ours, bare)}, arguments.rounds)
    publish("extract", "images/s", rows, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
