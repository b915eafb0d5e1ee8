"""Measure how the seconds and the memory of gates grow with the number of stored images.

    python benchmarks/gate_scaling.py [--images 5000 20000 80000] [--channels 1280] [--gates self hints]

Two teachers of five classes, whose embeddings and scores are random numbers, so that only time and memory
mean something. Each size runs in a new process, on one thread. Printed are the seconds of learning the gate,
as the report has them, those of everything (what it says of all images is stored, too), and by how much the
memory of the process rose above what it had before: the memory of its own, without the pages of the stored
files, which the operating system takes away when it needs them.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Config
from ka_ray.features.store import IMAGES, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.runs.gate_samples import Embedding
from ka_ray.runs.gates import learn_gates
from ka_ray.runs.timeline import Timeline

TEACHERS = {"a": tuple("abcde"), "b": tuple("fghij")}
ROWS_PER_SHARD = 2000


def read_own_memory() -> int:
    """Return the bytes of this process that belong to no file."""
    text = Path("/proc/self/status").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def store_images(folder: Path, images: int, channels: int) -> None:
    """Store random embeddings and scores, half of them with a known owner."""
    generator = np.random.default_rng(0)
    create_shard_folder(folder)
    for start in range(0, images, ROWS_PER_SHARD):
        ids = np.arange(start, min(start + ROWS_PER_SHARD, images))
        names = np.where(ids % 4 < 2, np.array(["a", "b"], dtype=object)[ids % 2], "")
        columns = {
            "image_id": ids,
            "scores": generator.normal(size=(len(ids), 10)).astype(np.float16),
            "embedding": generator.normal(size=(len(ids), 2 * channels)).astype(np.float16),
            "owner": names,
        }
        write_shard(folder, columns)
    mark_folder_finished(folder, {})


def measure(gate: str, images: int, channels: int) -> None:
    """Learn a gate in this process, and print its seconds and the rise of its memory in MiB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store_images(folder / IMAGES, images, channels)
        teachers = [{"name": t, "network": "plain", "classes": list(c)} for t, c in TEACHERS.items()]
        tree = {"name": "gate", "images": {"source": "digits"}, "teachers": teachers}
        config = Config.model_validate(
            tree | {"scores": {"gate": gate, "hints": dict.fromkeys(TEACHERS, name)}}
        )
        plan = SimpleNamespace(label_sets=LabelSets(TEACHERS))
        parts = {"config": config, "folder": folder, "plan": plan, "timeline": Timeline()}
        run = SimpleNamespace(**parts, notify=lambda *_: None)
        before, peak, done = read_own_memory(), 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, read_own_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        gates = learn_gates(run, [config], {t: Embedding("fc", channels) for t in TEACHERS})
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
    learned = gates.qualities[gate].seconds
    print(f"| {gate} | {images} | {learned:.1f} | {seconds:.1f} | {(peak - before) / 1024**2:.0f} |")


def main() -> None:
    """Measure every size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20_000, 80_000])
    parser.add_argument("--channels", type=int, default=1280, help="of each teacher's embedding")
    parser.add_argument("--gates", nargs="+", default=["self", "hints"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        measure(arguments.gates[0], arguments.images[0], arguments.channels)
        return
    print("| gate | images | seconds to learn it | seconds in all | MiB |\n|---|--:|--:|--:|--:|", flush=True)
    for gate in arguments.gates:
        for images in arguments.images:
            options = ["--images", str(images), "--channels", str(arguments.channels), "--gates", gate]
            subprocess.run([sys.executable, __file__, *options, "--here"], check=True)


if __name__ == "__main__":
    main()
