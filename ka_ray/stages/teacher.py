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

from ka_ray.config import Augmentation, NetworkTrainingConfig, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.features.store import Store
from ka_ray.images.augment import NUM_VIEW_DRAWS, augment
from ka_ray.images.views import IMAGE
from ka_ray.numerics.memory_format import move_network
from ka_ray.numerics.ranks import on_any_rank, rank, wait_for_all
from ka_ray.stages.inputs import build_average, network_settings
from ka_ray.storage.files import make_folder, write_json
from ka_ray.teachers import Preprocess, build_network
from ka_ray.teachers.checkpoint import load_fitting_weights, save_weights
from ka_ray.teachers.outputs import SelectScores
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, ProgressCallback, fit
from ka_ray.training.network_call import NetworkCall
from ka_ray.training.settings import FitSettings


class ClassifierLearner(nn.Module):
    """Learner of a classifier, with the cross-entropy on augmented images as its loss.

    Args:
        network: Network from pixels in 0 ... 255 to scores.
        augmentation: Random changes that are applied to each image.
        column: Column with the images.
        config: Whether the network is compiled and runs in mixed precision.
    """

    def __init__(
        self,
        network: nn.Module,
        augmentation: Augmentation,
        column: str = IMAGE,
        config: NetworkTrainingConfig | None = None,
    ) -> None:
        super().__init__()
        self.network, self.augmentation, self.column = network, augmentation, column
        config = config or NetworkTrainingConfig()
        self._call_network = NetworkCall(network, config.amp, config.compile)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of a batch with images ``[B, C, H, W]``, ``target [B]`` and ``draws [B, 3]``.

        The draws are the random numbers in [0, 1) that decide the augmentation of each image.
        """
        images = augment(batch[self.column], self.augmentation, batch["draws"])
        scores = self._call_network(images)
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
    column: str = IMAGE,
) -> None:
    """Train one teacher, in one process or in a process group. If its checkpoint exists, do nothing.

    Args:
        teacher: Section of the teacher in the config, with a ``training`` section.
        images: Folder of a finished store with the columns ``image`` and ``label``.
        folder: Folder in which ``<name>/teacher.safetensors`` and ``<name>/teacher.json`` are written.
        seed: Seed of the initial weights, of shuffling and of augmentation, unless the teacher has its own.
        device: Device to train on.
        report: Called with progress reports; see :func:`ka_ray.training.fit.fit`.
        column: Column with the images as the teacher sees them.

    Raises:
        InputError: A class has no image.
    """
    path = teacher_checkpoint_path(folder, teacher.name)
    if on_any_rank(path.exists()):
        return
    assert teacher.training is not None
    seed = seed if teacher.training.seed is None else teacher.training.seed
    network = _build_network(teacher, seed)
    learner = move_network(_build_learner(network, teacher, column), device)
    batches = _labelled_batches(teacher, images, seed, device, column)
    settings = _fit_settings(teacher, path)
    average = build_average(network, teacher.training)
    history = fit(learner, batches, settings, report, average)
    if rank() == 0:
        _save_teacher(network if average is None else average.module, history, path)
        # The state after the last saved epoch is only needed to resume.
        path.with_suffix(".epoch").unlink(missing_ok=True)
    wait_for_all()  # the run loads the checkpoint as soon as this function returns on any rank


def _build_network(teacher: TeacherConfig, seed: int) -> nn.Module:
    assert teacher.training is not None
    torch.manual_seed(seed)
    network = build_network(teacher.network, teacher.arguments, len(teacher.classes))
    if teacher.training.start is not None:
        load_fitting_weights(network, teacher.training.start)
    return network


def _build_learner(network: nn.Module, teacher: TeacherConfig, column: str) -> ClassifierLearner:
    training = teacher.training
    assert training is not None
    # Augmentation works on pixels, so preprocessing is part of the trained module. It has no weights.
    select_scores = SelectScores(len(teacher.classes), teacher.output, teacher.final_activation)
    network_on_pixels = nn.Sequential(Preprocess(teacher.preprocessing), network, select_scores)
    return ClassifierLearner(network_on_pixels, training.augment, column, training)


def _fit_settings(teacher: TeacherConfig, path: Path) -> FitSettings:
    assert teacher.training is not None
    return FitSettings(
        stage=f"teach_{teacher.name}",
        epochs=teacher.training.epochs,
        learning_rate=teacher.training.learning_rate,
        checkpoint=path.with_suffix(".epoch"),
        unused_parameters=True,  # only the user knows what is in the network
        **network_settings(teacher.training),
    )


def _labelled_batches(
    teacher: TeacherConfig, images: Path, seed: int, device: torch.device, column: str
) -> Batches:
    assert teacher.training is not None
    # Images of other classes get no target and are left out, so that several teachers can share one store.
    store, batch_size = Store(images), teacher.training.batch_size
    targets = class_targets(store, teacher.classes, f"teacher {teacher.name}")
    return Batches(
        store, [column], batch_size, seed, num_draws=NUM_VIEW_DRAWS, device=device, targets=targets
    )


def _save_teacher(network: nn.Module, history: list[Progress], path: Path) -> None:
    """Write the history and then the weights. The file with the weights marks the teacher as finished."""
    make_folder(path.parent)
    write_json(path.with_suffix(".json"), {"history": [asdict(record) for record in history]})
    save_weights(network, path)


def class_targets(store: Store, classes: Sequence[str], network: str) -> npt.NDArray[np.int64]:
    """Turn the stored labels into class indices.

    Args:
        store: Store with a column ``label`` of class names.
        classes: Class names in the order of the scores.
        network: Name of the network that is trained, for the error message.

    Returns:
        Index of the label among the classes per row of the store, ``[N]``; -1 for other labels.

    Raises:
        InputError: A class has no image.
    """
    index = {name: i for i, name in enumerate(classes)}
    labels = store.gather(["label"], np.arange(len(store)))["label"]
    targets = np.array([index.get(label, -1) for label in labels], dtype=np.int64)
    unseen = [name for name, i in index.items() if not (targets == i).any()]
    if unseen:
        raise InputError(
            f"{network}: no image is labelled {', '.join(unseen)}; class names and labels must be spelled "
            "the same"
        )
    return targets
