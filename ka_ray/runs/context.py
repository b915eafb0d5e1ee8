"""What every step of a run needs: its config, plan, images, output folder, cluster and tracker."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ka_ray.config import Config, TeachConfig, flatten
from ka_ray.distributed.cluster import Cluster, connect
from ka_ray.distributed.error_log import log_errors
from ka_ray.distributed.resource_plan import ResourcePlan, plan_resources
from ka_ray.images.split import ImageSet
from ka_ray.runs.output_folder import RUN, load_run_id, save_run_id
from ka_ray.student.plan import Plan
from ka_ray.terminal.progress import RUN_URL_PREFIX, Display
from ka_ray.terminal.streams import divert_descriptors
from ka_ray.terminal.usage import UsageMeter
from ka_ray.tracking import Tracker, open_tracker
from ka_ray.training.fit import Progress

RUN_LOG = "run.log"
"""The file in an output folder with what Ray, MLflow and other libraries wrote, and tracebacks of errors."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A run in progress, of a student or of a single teacher.

    Attributes:
        config: The config of the run.
        folder: The output folder.
        cluster: The Ray cluster that the run is connected to.
        resources: The resources of each process and the number of training workers; what the config leaves
            open is chosen for the cluster.
        tracker: Keeps parameters, metrics and files of the run.
        display: Shows progress on the terminal.
        children: Trackers of the students that are learned side by side, by their names. Progress of a stage
            called ``NAME/stage`` goes to the tracker of that name.
    """

    config: Config | TeachConfig
    folder: Path
    cluster: Cluster
    resources: ResourcePlan
    tracker: Tracker
    display: Display
    children: Mapping[str, Tracker] = field(default_factory=dict)

    def notify(self, *notes: str | None) -> None:
        """Show lines of text to the user; None is skipped."""
        for note in filter(None, notes):
            self.display.note(note)

    def warn(self, *warnings: str | None) -> None:
        """Show lines of text that the user should see even with ``--quiet``; None is skipped."""
        for warning in filter(None, warnings):
            self.display.warn(warning)

    def report_epoch(self, progress: Progress) -> None:
        """Show the progress of training, and log the losses and the speed of an epoch that has ended."""
        self.display.show_training(progress)
        if progress.epoch_ended:
            child, _, stage = progress.stage.rpartition("/")
            losses = {_metric(stage, name): loss for name, loss in progress.losses.items()}
            speed = {f"{stage}/images_per_s": progress.images / progress.seconds}
            self.children.get(child, self.tracker).log_metrics(losses | speed, step=progress.epoch)


@dataclass(frozen=True, kw_only=True)
class Run(RunContext):
    """A run in progress that merges teachers.

    Attributes:
        config: The config of the run; once the run has started, every teacher has a checkpoint.
        plan: The networks that are built, and where features are read.
        training_images: The images that students learn from.
        evaluation_images: The images that students are evaluated on.
    """

    config: Config
    plan: Plan
    training_images: ImageSet
    evaluation_images: ImageSet


@contextmanager
def open_context(
    config: Config | TeachConfig,
    folder: Path,
    name: str,
    id_file: str = RUN,
    check_resources: Callable[[ResourcePlan, Cluster], None] = lambda resources, cluster: None,
) -> Iterator[RunContext]:
    """Connect to the cluster and the tracker, and close both; a run that raises is tracked as failed.

    Args:
        config: The config of the run.
        folder: The output folder, which exists already.
        name: The name of the tracker's run.
        id_file: The file that keeps the tracker's run id, with which a later attempt continues.
        check_resources: Called before anything is logged; raises InputError if the cluster is too small.

    Raises:
        InputError: The cluster is too small for the run.
    """
    with (
        divert_descriptors(folder / RUN_LOG) as diverted,
        Display(UsageMeter()) as display,
        connect(config.ray) as cluster,
        log_errors(folder / RUN_LOG),  # inside, because connecting gives Ray's loggers their handlers
        open_tracker(config.tracking, name, folder, load_run_id(folder, id_file), display.warn) as tracker,
    ):
        resources = plan_resources(config, cluster)
        check_resources(resources, cluster)
        save_run_id(folder, tracker.run_id, id_file)
        context = RunContext(
            config=config,
            folder=folder,
            cluster=cluster,
            resources=resources,
            tracker=tracker,
            display=display,
        )
        _announce(context, diverted)
        yield context


def _announce(context: RunContext, diverted: bool) -> None:
    """Say where the run can be watched, and track its parameters."""
    link = context.tracker.link
    # The link comes first, so that the run can be watched from its start; `ka-ray submit` reads it, too.
    log = f"log: {context.folder / RUN_LOG}" if diverted else None
    context.notify(link and f"{RUN_URL_PREFIX}{link}", log, *context.resources.notes)
    context.tracker.log_params(flatten(context.config))


def _metric(stage: str, name: str) -> str:
    return f"{stage}/loss" if name == "loss" else f"{stage}/loss_{name}"
