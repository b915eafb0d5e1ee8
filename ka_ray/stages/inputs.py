"""What every training stage works with, and the files that it leaves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ka_ray.config import Config, TrainingConfig
from ka_ray.errors import InputError
from ka_ray.features.store import DONE, Store
from ka_ray.storage.cache import fetch_local_copy
from ka_ray.storage.files import make_folder, write_json
from ka_ray.student.plan import Plan
from ka_ray.teachers.checkpoint import save_weights
from ka_ray.training.batches import Batches
from ka_ray.training.fit import FitSettings, Progress, ProgressCallback


@dataclass(frozen=True)
class StageInputs:
    """What a stage works with.

    Attributes:
        config: The run.
        plan: What is built.
        data: The folder with the stored features and images, reachable by every worker.
        folder: Where the stages leave their results; the same folder, but for runs that share their data.
        device: Of this worker.
        report: Told the progress, on rank 0.
    """

    config: Config
    plan: Plan
    data: Path
    folder: Path
    device: torch.device
    report: ProgressCallback

    def store(self, *folders: str) -> Store:
        """Open those of the stored folders that there are."""
        return Store(*[self.data / name for name in folders if (self.data / name / DONE).exists()])

    def batches(self, stage: str, store: Store, columns: list[str], **options: Any) -> Batches:
        """Batch a store as a stage's section of the config says."""
        section: TrainingConfig = getattr(self.config, stage)
        return Batches(store, columns, section.batch_size, self.config.seed, device=self.device, **options)

    def settings(self, stage: str) -> FitSettings:
        """The stage's epochs and rate."""
        section: TrainingConfig = getattr(self.config, stage)
        beta2 = 0.999 if stage == "joint" else 0.95
        images = self.config.joint.images if stage == "joint" else None
        return FitSettings(
            stage,
            section.epochs,
            section.learning_rate,
            beta2=beta2,
            images=images,
            checkpoint=epoch_file(self.folder, stage),
        )


def stage_summary_path(folder: Path, stage: str) -> Path:
    """The file that says a stage stands."""
    return folder / "stages" / f"{stage}.json"


def epoch_file(folder: Path, stage: str) -> Path:
    """The file with the last epoch of a stage that is under way."""
    return stage_summary_path(folder, stage).with_suffix(".epoch")


def save_stage(folder: Path, stage: str, module: nn.Module, summary: dict[str, Any]) -> None:
    """Write a stage's weights, then its summary, each atomically; its epochs are not needed any more."""
    weights_path = stage_summary_path(folder, stage).with_suffix(".safetensors")
    make_folder(weights_path.parent)
    save_weights(module, weights_path)
    write_json(stage_summary_path(folder, stage), summary)
    for pattern in (f"{stage}*.epoch", f".{stage}*.part"):
        for unfinished in weights_path.parent.glob(pattern):
            unfinished.unlink(missing_ok=True)


def load_stage(folder: Path, stage: str, module: nn.Module) -> None:
    """Load what a stage left into a module of the same shape.

    Raises:
        InputError: The file is damaged, or of another module.
    """
    path = stage_summary_path(folder, stage).with_suffix(".safetensors")
    try:
        module.load_state_dict(load_weights(folder, stage))
    except (SafetensorError, RuntimeError, FileNotFoundError) as error:
        raise InputError(
            f"checkpoint {path} cannot be used ({str(error).splitlines()[0]}); delete "
            f"{path.with_suffix('.json').name} beside it, and the same command does the stage anew"
        ) from None


def load_weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """Read the weights that a stage left."""
    path = stage_summary_path(folder, stage).with_suffix(".safetensors")
    weights: dict[str, torch.Tensor] = load_file(fetch_local_copy(path))
    return weights


def epoch_students_folder(folder: Path) -> Path:
    """Where the student of every joint epoch is kept, if it is: one folder an epoch."""
    return folder / "stages" / "epochs"


def records(history: Sequence[Progress]) -> list[dict[str, Any]]:
    """Turn a stage's history into what JSON keeps."""
    return [asdict(record) for record in history]
