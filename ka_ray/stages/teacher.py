"""Train a teacher on labelled images, so that the whole story can be told from scratch.

Shapes: B images, K classes of the teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.config import Augmentation, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.features.store import Store
from ka_ray.images.augment import NUM_VIEW_DRAWS, augment
from ka_ray.numerics.ranks import on_any_rank, rank, wait_for_all
from ka_ray.storage.files import make_folder, write_json
from ka_ray.teachers import Preprocess, build_network
from ka_ray.teachers.checkpoint import save_weights
from ka_ray.training.batches import Batches
from ka_ray.training.fit import FitSettings, Progress, ProgressCallback, fit


class ClassifierLearner(nn.Module):
    """A classifier's cross-entropy on augmented images.

    Args:
        network: From pixels in 0 ... 255 to scores.
        views: Which views it sees.
    """

    def __init__(self, network: nn.Module, views: Augmentation) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the loss of ``image [B, 3, H, W]``, ``target [B]`` and ``draws [B, 3]``."""
        images = augment(batch["image"], self.views, batch["draws"])
        scores = self.network(images)
        return {"loss": functional.cross_entropy(scores, batch["target"])}


def teacher_checkpoint_path(folder: Path, name: str) -> Path:
    """Where a trained teacher's weights are kept in an output folder."""
    return folder / name / "teacher.safetensors"


def train_teacher(
    teacher: TeacherConfig,
    images: Path,
    folder: Path,
    seed: int,
    device: torch.device,
    report: ProgressCallback,
) -> None:
    """Train one teacher, alone or as one of a process group; skipped where its checkpoint stands.

    Args:
        teacher: With its ``training`` section.
        images: A finished store of ``image`` and ``label``.
        folder: Gets ``<name>/teacher.safetensors`` and ``<name>/teacher.json``.
        seed: Of weights, shuffling and views.
        report: Told the progress, on rank 0.

    Raises:
        InputError: A class has no image.
    """
    path = teacher_checkpoint_path(folder, teacher.name)
    if on_any_rank(path.exists()):
        return
    assert teacher.training is not None
    torch.manual_seed(seed)
    network = build_network(teacher.network, teacher.arguments, len(teacher.classes))
    on_pixels = nn.Sequential(Preprocess(teacher.preprocessing), network)
    learner = ClassifierLearner(on_pixels, teacher.training.augment).to(device)
    settings, batches = teacher.training, _labelled_batches(teacher, images, seed, device)
    epoch_file, stage = path.with_suffix(".epoch"), f"teach_{teacher.name}"
    rates = (settings.learning_rate, settings.weight_decay)
    history = fit(
        learner, batches, FitSettings(stage, settings.epochs, *rates, checkpoint=epoch_file), report
    )
    if rank() == 0:
        _save_teacher(network, history, path)
        epoch_file.unlink(missing_ok=True)
    wait_for_all()


def _labelled_batches(teacher: TeacherConfig, images: Path, seed: int, device: torch.device) -> Batches:
    assert teacher.training is not None
    store, batch_size = Store(images), teacher.training.batch_size
    targets = class_targets(store, teacher.classes, f"teacher {teacher.name}")
    return Batches(
        store, ["image"], batch_size, seed, num_draws=NUM_VIEW_DRAWS, device=device, targets=targets
    )


def _save_teacher(network: nn.Module, history: list[Progress], path: Path) -> None:
    """Write the history and then the weights, whose file says that the teacher is finished."""
    make_folder(path.parent)
    write_json(path.with_suffix(".json"), {"history": [asdict(record) for record in history]})
    save_weights(network, path)


def class_targets(store: Store, classes: Sequence[str], whose: str) -> npt.NDArray[np.int64]:
    """Turn the stored labels into indices among some classes, ``[N]``; -1 for other labels.

    Args:
        store: With a column ``label``.
        classes: In the order of the scores.
        whose: Who is trained, for the message.

    Raises:
        InputError: A class has no image.
    """
    index = {name: i for i, name in enumerate(classes)}
    labels = store.gather(["label"], np.arange(len(store)))["label"]
    targets = np.array([index.get(label, -1) for label in labels], dtype=np.int64)
    unseen = [name for name, i in index.items() if not (targets == i).any()]
    if unseen:
        raise InputError(f"{whose}: no image is labelled {', '.join(unseen)}")
    return targets
