"""Joint learning from stored scores, by ka_ray's loop and by a bare one; shared by gpu.py and train.py."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ka_ray.config import JointConfig, Preprocessing, ScoresConfig
from ka_ray.features.stack import SCORES
from ka_ray.features.store import Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.images.views import IMAGE
from ka_ray.numerics.memory_format import move_network
from ka_ray.numerics.mixed_precision import Precision, autocast
from ka_ray.numerics.ranks import rank, world_size
from ka_ray.stages.joint import JointLearner
from ka_ray.student import Student, StudentSpec
from ka_ray.teachers import build_network
from ka_ray.training.batches import Batches
from ka_ray.training.fit import fit
from ka_ray.training.settings import FitSettings

NUM_CLASSES = 10
"""Number of classes of each of two teachers."""


@dataclass(frozen=True)
class Work:
    """What is learned.

    Attributes:
        network: Network of the student, as a config names it.
        arguments: Arguments of its builder.
        size: Height and width of the images, in pixels.
        batch: Images per step, over all processes.
        rows: Number of images.
        epochs: Epochs that are timed, after one that is not.
    """

    network: str
    size: int
    batch: int
    rows: int
    epochs: int = 3
    arguments: tuple[tuple[str, object], ...] = ()


def make_store(folder: Path, work: Work) -> Store:
    """Store random images and scores, unless the folder has them."""
    if not folder.exists():
        rng = np.random.default_rng(0)
        create_shard_folder(folder)
        for part in np.array_split(np.arange(work.rows), 4):
            images = rng.integers(0, 256, (len(part), 3, work.size, work.size), dtype=np.uint8)
            scores = rng.normal(size=(len(part), 2 * NUM_CLASSES)).astype(np.float16)
            write_shard(folder, {"image_id": part, IMAGE: images, SCORES: scores})
        mark_folder_finished(folder, {})
    return Store(folder)


def learn_jointly(
    work: Work, store: Store, device: torch.device, amp: Precision = "none", compiled: bool = False
) -> float:
    """Return images/s of the stage `joint` behind a start, over all processes."""
    label_sets = {t: tuple(f"{t}_{i}" for i in range(NUM_CLASSES)) for t in ("a", "b")}
    pixels = Preprocessing(size=work.size, crop=work.size, resize="squash").model_dump(mode="json")
    student = Student(StudentSpec(work.network, dict(work.arguments), {}, {}, label_sets, None, pixels, {}))
    config = JointConfig(batch_size=work.batch, amp=amp, compile=compiled, loss="kl", batch_norms="frozen")
    learner = move_network(JointLearner(student, config, ScoresConfig()), device)
    batches, ends = Batches(store, [IMAGE, SCORES], work.batch, seed=0, device=device), list[float]()
    settings = FitSettings(
        "joint", work.epochs + 1, 1e-4, amp=amp, batch_norms="frozen", decay_biases=False, clip_norm=None
    )
    fit(learner, batches, settings, lambda p: ends.append(time.perf_counter()) if p.epoch_ended else None)
    return batches.steps_per_epoch * work.batch * work.epochs / (ends[-1] - ends[0])


def learn_bare(
    work: Work,
    store: Store,
    device: torch.device,
    amp: Precision = "none",
    memory: torch.memory_format = torch.contiguous_format,
) -> float:
    """Return images/s of a plain loop with the same network, loss, optimizer and batches, all in memory."""
    rows, on_gpu = np.arange(len(store)), device.type == "cuda"
    images, targets = (store.gather([column], rows)[column] for column in (IMAGE, SCORES))
    network = build_network(work.network, dict(work.arguments), 2 * NUM_CLASSES)
    network = network.to(device).eval().to(memory_format=memory)
    model = network if world_size() == 1 else DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)  # as ours
    share = work.batch // world_size()
    rng, ends = np.random.default_rng(0), list[float]()
    for _ in range(work.epochs + 1):
        order = rng.permutation(rows)
        for start in range(0, len(rows) - work.batch + 1, work.batch):
            chosen = order[start + rank() * share : start + (rank() + 1) * share]
            parts = [torch.from_numpy(array[chosen]) for array in (images, targets)]
            if on_gpu:
                parts = [part.pin_memory().to(device, non_blocking=True) for part in parts]
            x, y = (part.float() for part in parts)
            with autocast(device, amp):
                scores = model((x.to(memory_format=memory) / 255 - 0.5) / 0.5)
            p, q = ((one.float() / 2).log_softmax(1) for one in (y, scores))
            loss = 4 * nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    return len(rows) // work.batch * work.batch * work.epochs / (ends[-1] - ends[0])
