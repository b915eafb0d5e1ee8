"""Train a teacher on labelled images, for runs that start without trained teachers.

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
    """Module that :func:`ka_ray.training.fit.fit` trains: a classifier with its cross-entropy loss.

    Args:
        network: Network from pixels in 0 ... 255 to scores.
        augmentation: How each image is flipped and shifted at random before the network gets it.
    """

    def __init__(self, network: nn.Module, augmentation: Augmentation) -> None:
        super().__init__()
        self.network, self.augmentation = network, augmentation

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of a batch.

        Args:
            batch: ``image [B, 3, H, W]``; ``target [B]``, class indices; and ``draws [B, 3]``, random numbers
                in [0, 1) that decide how each image is augmented.
        """
        images = augment(batch["image"], self.augmentation, batch["draws"])
        scores = self.network(images)
        return {"loss": functional.cross_entropy(scores, batch["target"])}


def teacher_checkpoint_path(folder: Path, name: str) -> Path:
    """Return the path of the weights of a teacher that a run trains.

    Args:
        folder: Folder for the teachers that the run trains.
        name: Name of the teacher.
    """
    return folder / name / "teacher.safetensors"


def train_teacher(
    teacher: TeacherConfig,
    images: Path,
    folder: Path,
    seed: int,
    device: torch.device,
    report: ProgressCallback,
) -> None:
    """Train one teacher, in one process or on every rank of a process group.

    If its checkpoint exists, return at once.

    Args:
        teacher: The teacher's section of the config; it must have a ``training`` section.
        images: Folder of a :class:`~ka_ray.features.store.Store` with the columns ``image`` and ``label``.
        folder: Folder in which ``<name>/teacher.safetensors`` and ``<name>/teacher.json`` are written.
        seed: Seed of weights, shuffling and augmentation.
        device: Device to train on.
        report: Called on rank 0 with the progress, e.g. after each epoch.

    Raises:
        InputError: No image is labelled with one of the teacher's classes.
    """
    path = teacher_checkpoint_path(folder, teacher.name)
    # All ranks must decide the same, even if a shared file system shows the file to some of them later.
    if on_any_rank(path.exists()):
        return
    assert teacher.training is not None
    torch.manual_seed(seed)
    network = build_network(teacher.network, teacher.arguments, len(teacher.classes))
    # Augmentation works on pixels, so preprocessing is part of the trained module. It has no weights.
    network_on_pixels = nn.Sequential(Preprocess(teacher.preprocessing), network)
    learner = ClassifierLearner(network_on_pixels, teacher.training.augment).to(device)
    batches = _labelled_batches(teacher, images, seed, device)
    settings = _fit_settings(teacher, path)
    history = fit(learner, batches, settings, report)
    if rank() == 0:
        _save_teacher(network, history, path)
        # The state after the last saved epoch is needed only to resume an interrupted training.
        path.with_suffix(".epoch").unlink(missing_ok=True)
    # The run loads the checkpoint as soon as this function returns on any rank.
    wait_for_all()


def _fit_settings(teacher: TeacherConfig, path: Path) -> FitSettings:
    assert teacher.training is not None
    return FitSettings(
        stage=f"teach_{teacher.name}",
        epochs=teacher.training.epochs,
        learning_rate=teacher.training.learning_rate,
        weight_decay=teacher.training.weight_decay,
        checkpoint=path.with_suffix(".epoch"),
    )


def _labelled_batches(teacher: TeacherConfig, images: Path, seed: int, device: torch.device) -> Batches:
    assert teacher.training is not None
    # Images of other classes get the target -1 and are skipped, so that several teachers can share a store.
    store, batch_size = Store(images), teacher.training.batch_size
    targets = class_targets(store, teacher.classes, f"teacher {teacher.name}")
    return Batches(
        store, ["image"], batch_size, seed, num_draws=NUM_VIEW_DRAWS, device=device, targets=targets
    )


def _save_teacher(network: nn.Module, history: list[Progress], path: Path) -> None:
    """Write the history, then the weights: if the file with the weights exists, the teacher is finished."""
    make_folder(path.parent)
    write_json(path.with_suffix(".json"), {"history": [asdict(record) for record in history]})
    save_weights(network, path)


def class_targets(store: Store, classes: Sequence[str], network_name: str) -> npt.NDArray[np.int64]:
    """Turn the stored labels into class indices.

    Args:
        store: Store with a column ``label`` of class names.
        classes: Class names in the order of the scores.
        network_name: Name of the network that is trained, for the error message.

    Returns:
        For each of the N rows of the store, the index of its label among the classes, ``[N]``; -1 for a label
        that is not among them.

    Raises:
        InputError: No image is labelled with one of the classes.
    """
    index = {name: i for i, name in enumerate(classes)}
    labels = store.gather(["label"], np.arange(len(store)))["label"]
    targets = np.array([index.get(label, -1) for label in labels], dtype=np.int64)
    unseen = [name for name, i in index.items() if not (targets == i).any()]
    if unseen:
        raise InputError(
            f"{network_name}: no image is labelled {', '.join(unseen)}; class names and labels must be "
            "spelled the same"
        )
    return targets
