"""What every step of a run needs at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ka_ray.config import Config, TeachConfig
from ka_ray.display import Display
from ka_ray.distributed.cluster import Cluster
from ka_ray.tracking.base import Tracker
from ka_ray.training.fit import Progress

AnyConfig = TypeVar("AnyConfig", bound=Config | TeachConfig, covariant=True)


@dataclass(frozen=True)
class Run(Generic[AnyConfig]):
    """A run in progress: its config, where it leaves things, and who is told."""

    config: AnyConfig
    folder: Path
    cluster: Cluster
    tracker: Tracker
    display: Display

    def report(self, progress: Progress) -> None:
        """Show a training report, and log an epoch's losses and speed once it has ended."""
        self.display.training(progress)
        if progress.epoch_ended:
            losses = {_metric(progress.stage, name): loss for name, loss in progress.losses.items()}
            speed = {f"{progress.stage}/images_per_s": progress.images / progress.seconds}
            self.tracker.log_metrics(losses | speed, step=progress.epoch)


def _metric(stage: str, name: str) -> str:
    return f"{stage}/loss" if name == "loss" else f"{stage}/loss_{name}"
