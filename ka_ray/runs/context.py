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
from ka_ray.runs.timeline import Timeline
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
        timeline: Records where the time goes.
    """

    config: Config | TeachConfig
    folder: Path
    cluster: Cluster
    resources: ResourcePlan
    tracker: Tracker
    display: Display
    children: Mapping[str, Tracker] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)

    def notify(self, *notes: str | None) -> None:
        """Show lines of text to the user; None is skipped."""
        for note in filter(None, notes):
            self.display.note(note)

    def warn(self, *warnings: str | None) -> None:
        """Show lines of text that the user should see even with ``--quiet``; None is skipped."""
        for warning in filter(None, warnings):
            self.display.warn(warning)

    @contextmanager
    def track_images(self, stage: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many images of a pass have been processed, and record it as a step of the timeline.

        Args:
            stage: Name of the pass.
            total: Number of images to process.

        Yields:
            A function to call with the number of images that were processed since the last call.
        """
        with self.timeline.step(stage), self.display.track_images(stage, total) as on_images:
            yield on_images

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
    timeline: Timeline | None = None,
) -> Iterator[RunContext]:
    """Connect to the cluster and the tracker, and close both; a run that raises is tracked as failed.

    Args:
        config: The config of the run.
        folder: The output folder, which exists already.
        name: The name of the tracker's run.
        id_file: The file that keeps the tracker's run id, with which a later attempt continues.
        check_resources: Called before anything is logged; raises InputError if the cluster is too small.
        timeline: Has the steps so far; None if there are none.

    Raises:
        InputError: The cluster is too small for the run.
    """
    timeline = timeline or Timeline()
    with _connect_to_both(config, folder, name, id_file, timeline) as (cluster, tracker, display, diverted):
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
            timeline=timeline,
        )
        _announce(context, diverted)
        yield context


@contextmanager
def _connect_to_both(
    config: Config | TeachConfig, folder: Path, name: str, id_file: str, timeline: Timeline
) -> Iterator[tuple[Cluster, Tracker, Display, bool]]:
    """Connect to Ray and to the tracker, with a display; also say whether other output goes to a log."""
    run_id = load_run_id(folder, id_file)
    with (
        divert_descriptors(folder / RUN_LOG) as diverted,
        Display(UsageMeter()) as display,
        timeline.entering("starting Ray", connect(config.ray)) as cluster,
        log_errors(folder / RUN_LOG),  # inside, because connecting gives Ray's loggers their handlers
        timeline.entering(
            "opening MLflow", open_tracker(config.tracking, name, folder, run_id, display.warn)
        ) as tracker,
    ):
        yield cluster, tracker, display, diverted


def _announce(context: RunContext, diverted: bool) -> None:
    """Say where the run can be watched, and track its parameters."""
    link = context.tracker.link
    # The link comes first, so that the run can be watched from its start; `ka-ray submit` reads it, too.
    log = f"log: {context.folder / RUN_LOG}" if diverted else None
    context.notify(link and f"{RUN_URL_PREFIX}{link}", log, *context.resources.notes)
    context.tracker.log_params(flatten(context.config))


def _metric(stage: str, name: str) -> str:
    return f"{stage}/loss" if name == "loss" else f"{stage}/loss_{name}"
