"""What every step of a run needs at hand, and how a run begins and ends."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from ka_ray.config import Config, TeachConfig, flatten
from ka_ray.distributed.cluster import Cluster, check_fits, check_training_fits, connect
from ka_ray.runs.output_folder import RUN, load_run_id, save_run_id
from ka_ray.terminal.progress import LINK, Display
from ka_ray.tracking import Tracker, open_tracker
from ka_ray.training.fit import Progress

AnyConfig = TypeVar("AnyConfig", bound=Config | TeachConfig, covariant=True)
OneConfig = TypeVar("OneConfig", Config, TeachConfig)


@dataclass(frozen=True)
class Run(Generic[AnyConfig]):
    """A run in progress: its config, where it leaves things, and who is told."""

    config: AnyConfig
    folder: Path
    cluster: Cluster
    tracker: Tracker
    display: Display
    children: Mapping[str, Tracker] = field(default_factory=dict)
    """Trackers of the students that are learned side by side; theirs is what comes as ``NAME/stage``."""

    def tell(self, *notes: str | None) -> None:
        """Show the notes that there are."""
        for note in filter(None, notes):
            self.display.note(note)

    def report(self, progress: Progress) -> None:
        """Show a training report, and log an epoch's losses and speed once it has ended."""
        self.display.training(progress)
        if progress.epoch_ended:
            child, _, stage = progress.stage.rpartition("/")
            losses = {_metric(stage, name): loss for name, loss in progress.losses.items()}
            speed = {f"{stage}/images_per_s": progress.images / progress.seconds}
            self.children.get(child, self.tracker).log_metrics(losses | speed, step=progress.epoch)


@contextmanager
def open_run(config: OneConfig, folder: Path, name: str, file: str = RUN) -> Iterator[Run[OneConfig]]:
    """Connect to the cluster and the tracker, and close both; a failed run is tracked as failed.

    Args:
        config: The run.
        folder: Its claimed output folder.
        name: Of the tracker's run.
        file: Where in the folder that run's id is kept, to go on with it.

    Raises:
        InputError: The cluster is too small for the plan.
    """
    with (
        Display() as display,
        connect(config.ray) as cluster,
        open_tracker(config.tracking, name, folder, load_run_id(folder, file)) as tracker,
    ):
        if isinstance(config, Config):
            check_fits(config, cluster)
        else:
            check_training_fits(config.ray, config.placement, cluster)
        save_run_id(folder, tracker.run_id, file)
        if tracker.link is not None:  # first of all, so that a run can be watched; `ka-ray submit` reads it
            display.note(f"{LINK}{tracker.link}")
        tracker.log_params(flatten(config))
        yield Run(config, folder, cluster, tracker, display)


def _metric(stage: str, name: str) -> str:
    return f"{stage}/loss" if name == "loss" else f"{stage}/loss_{name}"
