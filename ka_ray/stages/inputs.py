"""Inputs that all training stages share, and the files that a stage writes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ka_ray.config import Config, NetworkTrainingConfig, TrainingConfig
from ka_ray.errors import InputError
from ka_ray.features.store import DONE, Store
from ka_ray.numerics.tensor_file import load_tensors
from ka_ray.stages.gated_store import GatedStore
from ka_ray.storage.files import make_folder, write_json
from ka_ray.student.plan import Plan
from ka_ray.teachers.checkpoint import save_weights
from ka_ray.training.averaging import Network, WeightAverage
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, ProgressCallback
from ka_ray.training.settings import FitSettings


@dataclass(frozen=True)
class StageInputs:
    """Inputs of a training stage.

    Attributes:
        config: Config of the run.
        plan: Architecture of the student, and the taps with their shapes.
        data: Folder with the stored features and images; all workers must reach it.
        folder: Output folder of the run, where the stages write their results. It is the same as ``data``,
            except for runs that share their data with other runs.
        device: Device of this worker.
        report: Called with progress reports; see :func:`ka_ray.training.fit.fit`.
    """

    config: Config
    plan: Plan
    data: Path
    folder: Path
    device: torch.device
    report: ProgressCallback

    def store(self, *folders: str) -> Store:
        """Open the given folders of stored images as one store; with a gate, its scores are gated.

        Folders that do not exist are left out.
        """
        # If the features of all images are kept, there is no folder of images without features.
        found = [self.data / name for name in folders if (self.data / name / DONE).exists()]
        scores = self.config.scores
        if not scores.gated:
            return Store(*found)
        return GatedStore(found, owners_folder(self.data, scores.gate), self.plan.label_sets)

    def batches(self, stage: str, store: Store, columns: list[str], **options: Any) -> Batches:
        """Return batches of a store with the batch size of a stage.

        Args:
            stage: Name of the stage, which is also its section in the config.
            store: Store to read from.
            columns: Names of the numeric columns to read.
            options: Further keyword arguments of :class:`ka_ray.training.batches.Batches`.
        """
        section: TrainingConfig = getattr(self.config, stage)
        return Batches(store, columns, section.batch_size, self.config.seed, device=self.device, **options)

    def settings(self, stage: str) -> FitSettings:
        """Return the settings of the training loop from a stage's section of the config."""
        section: TrainingConfig = getattr(self.config, stage)
        settings = FitSettings(
            stage,
            section.epochs,
            section.learning_rate,
            beta2=section.beta2,
            images=self.config.joint.images if stage == "joint" else None,
            checkpoint=epoch_checkpoint_path(self.folder, stage),
        )
        if not isinstance(section, NetworkTrainingConfig):
            return settings
        return replace(settings, **network_settings(section), decay_biases=False)


def owners_folder(data: Path, gate: str) -> Path:
    """Return the folder of shards with log p(owner | image) of all stored images.

    Args:
        data: Folder with the stored images.
        gate: Name of the gate, as ``scores.gate`` has it.
    """
    return data / "gates" / gate / "owners"


def network_settings(section: NetworkTrainingConfig) -> dict[str, Any]:
    """Return the settings of the training loop that are shared by joint learning and training of teachers.

    Args:
        section: Section `joint` of the config, or `training` of a teacher.

    Returns:
        Keyword arguments of :class:`ka_ray.training.settings.FitSettings`.
    """
    # The moving average and the compiler are no settings of the loop: it gets an average and a learner.
    keys = NetworkTrainingConfig.model_fields.keys() - {"ema", "compile"}
    return {key: getattr(section, key) for key in keys}


def build_average(network: Network, section: NetworkTrainingConfig) -> WeightAverage[Network] | None:
    """Return a moving average of a network's weights, if the config asks for one.

    Args:
        network: Network that will be trained, on the device of the training.
        section: Section `joint` of the config, or `training` of a teacher.
    """
    return None if section.ema is None else WeightAverage(network, section.ema)


def stage_summary_path(folder: Path, stage: str) -> Path:
    """Return the path of a stage's summary. If this file exists, the stage is finished.

    Args:
        folder: Output folder of the run.
        stage: Name of the stage.
    """
    return folder / "stages" / f"{stage}.json"


def epoch_checkpoint_path(folder: Path, stage: str) -> Path:
    """Return the path of the checkpoint that an unfinished stage writes after each epoch.

    Args:
        folder: Output folder of the run.
        stage: Name of the stage.
    """
    return stage_summary_path(folder, stage).with_suffix(".epoch")


def save_stage(folder: Path, stage: str, module: nn.Module, summary: dict[str, Any]) -> None:
    """Write a stage's weights and then its summary, each atomically, and remove its epoch checkpoints.

    Args:
        folder: Output folder of the run.
        stage: Name of the stage.
        module: Module whose weights are written.
        summary: JSON content of the summary.
    """
    weights_path = stage_summary_path(folder, stage).with_suffix(".safetensors")
    make_folder(weights_path.parent)
    save_weights(module, weights_path)
    # The summary is written last, because it marks the stage as finished.
    write_json(stage_summary_path(folder, stage), summary)
    # The codes have one epoch checkpoint per auto-encoder, hence the pattern. A worker that died may also
    # have left a half-written file.
    for pattern in (f"{stage}*.epoch", f".{stage}*.part"):
        for unfinished in weights_path.parent.glob(pattern):
            unfinished.unlink(missing_ok=True)


def load_stage(folder: Path, stage: str, module: nn.Module) -> None:
    """Load the weights of a finished stage into a module, in place.

    Args:
        folder: Output folder of the run.
        stage: Name of the stage.
        module: Module of the same architecture as the saved one.

    Raises:
        InputError: The file is missing or damaged, or belongs to another module.
    """
    path = stage_summary_path(folder, stage).with_suffix(".safetensors")
    try:
        module.load_state_dict(load_stage_weights(folder, stage))
    except (InputError, RuntimeError, FileNotFoundError) as error:
        raise InputError(
            f"checkpoint {path} cannot be used ({str(error).splitlines()[0]}). Delete "
            f"{path.with_suffix('.json').name} in the same folder, then run the same command again to repeat "
            "the stage"
        ) from None


def load_stage_weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """Return the weights of a finished stage, name -> tensor.

    Args:
        folder: Output folder of the run.
        stage: Name of the stage.
    """
    path = stage_summary_path(folder, stage).with_suffix(".safetensors")
    return load_tensors(path)


def epoch_students_folder(folder: Path) -> Path:
    """Return the folder with the students after each joint epoch, one folder each, if the run keeps them."""
    return folder / "stages" / "epochs"


def history_to_json(history: Sequence[Progress]) -> list[dict[str, Any]]:
    """Return the records of a stage as JSON objects."""
    return [asdict(record) for record in history]
