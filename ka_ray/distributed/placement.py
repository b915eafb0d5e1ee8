"""Choose the resources that the config leaves open, so that all processes of a run fit; without Ray."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ka_ray.config import ExtractConfig, PlacementConfig, RayConfig, Resources, ResourcesConfig
from ka_ray.distributed.capacity import Demand, Host, share_gpus, shortage

SCALES = (*(n / 100 for n in range(100, 0, -1)), *(n / 1000 for n in range(9, 0, -1)))
"""Factors of the standard CPUs to try, largest first; with the smallest, 2,000 teachers share a core."""

RAY_UNITS = 10_000
"""Ray counts resources in steps of ``1 / RAY_UNITS``."""


@dataclass(frozen=True)
class Placement:
    """The resources of one process of each kind; unlike in the config, every number is known.

    Attributes:
        teachers: Each actor of each teacher, and each evaluator or reducer that receives the teachers' rows.
        trainers: Each training worker, or the command itself if it trains.
        decoding: Each task that reads, decodes or writes.
        trials: Each trial of `ka-ray tune`.
    """

    teachers: Resources
    trainers: Resources
    decoding: Resources
    trials: Resources


STANDARD = Placement(Resources(cpu=0.5), Resources(cpu=1), Resources(cpu=0.25), Resources(cpu=1))
"""What each process gets if the config leaves it open and the cluster is large enough."""


@dataclass(frozen=True)
class Workload:
    """How many processes run at the same time.

    Attributes:
        num_teachers: Number of teachers, and of other networks that images pass through.
        extract: The ``extract`` section, with the numbers of actors per teacher and of reducers (actors that
            add up statistics of what the teachers return).
        ray: The ``ray`` section, with the number of training workers.
    """

    num_teachers: int
    extract: ExtractConfig
    ray: RayConfig
    called: str = "teachers"  # what they are called in messages


Demands = dict[str, list[Demand]]
"""Name of a stage -> the processes that it runs at the same time."""


def pass_demands(teachers: Resources, decoding: Resources, load: Workload) -> Demands:
    """List what runs at the same time in each kind of pass over the images.

    Args:
        teachers: The resources of each actor.
        decoding: The resources of each task that reads, decodes or writes.
        load: How many of them there are.
    """
    extract = load.extract
    # Evaluators and reducers get what the teachers return. They use a GPU only if the teachers leave one
    # free, so a GPU is never counted as needed for them.
    downstream = teachers.model_copy(update={"gpu": 0})
    actors = Demand(
        f"{load.num_teachers} {load.called} x {extract.actors_per_teacher} actors",
        load.num_teachers * extract.actors_per_teacher,
        teachers,
        "placement.teachers or extract.actors_per_teacher",
    )
    reading = Demand("1 task of decoding", 1, decoding, "placement.decoding")
    writing = Demand("1 task of writing", 1, decoding, "placement.decoding")
    evaluator = Demand("1 evaluator", 1, downstream, "placement.teachers.cpu")
    reducers = Demand(f"{extract.reducers} reducers", extract.reducers, downstream, "extract.reducers")
    return {
        "extraction": [actors, reading, writing],
        "evaluation": [actors, evaluator, reading],
        "measuring statistics": [actors, reducers, reading],
    }


def training_demands(trainers: Resources, ray: RayConfig) -> Demands:
    """Return the training workers that must run at the same time.

    Args:
        trainers: The resources of each worker.
        ray: The ``ray`` section, with the number of workers.
    """
    least = ray.worker_range[0]
    return {"training": [Demand(f"{least} workers", least, trainers, "ray.workers or placement.trainers")]}


def trial_demands(trials: Resources) -> Demands:
    """List the least that a search must run at the same time: one trial."""
    return {"the search": [Demand("1 trial", 1, trials, "placement.trials")]}


def first_shortage(demands: Demands, hosts: Sequence[Host]) -> str | None:
    """Return why the first stage that does not fit on the nodes does not fit; None if all stages fit.

    Args:
        demands: Name of each stage -> the processes that run at the same time.
        hosts: The nodes.
    """
    problems = (shortage(stage, of_stage, hosts) for stage, of_stage in demands.items())
    return next((problem for problem in problems if problem is not None), None)


def standard_placement(config: PlacementConfig) -> Placement:
    """Return what the user set, and the standard resources where the config leaves them open."""
    return Placement(
        teachers=_fill_in(config.teachers, STANDARD.teachers),
        trainers=_fill_in(config.trainers, STANDARD.trainers),
        decoding=_fill_in(config.decoding, STANDARD.decoding),
        trials=_fill_in(config.trials, STANDARD.trials),
    )


def fit_placement(
    config: PlacementConfig, load: Workload, hosts: Sequence[Host], num_gpus: int = 0
) -> tuple[Placement, int]:
    """Choose the resources that the config leaves open, so that every stage fits on the nodes.

    These are the standard ones if they fit, else smaller ones. What the user set is never changed. If nothing
    fits beside what the user set, the standard ones are returned, so that the error shows the usual numbers.

    Args:
        config: What the user set; None is chosen here.
        load: How many processes run at the same time.
        hosts: The nodes.
        num_gpus: Number of GPUs that teachers and training workers may use where the config does not say.

    Returns:
        The resources, and the least number of training workers: ``load.ray.workers``; if that is None, 2, or
        1 if 2 do not fit with the standard resources.
    """
    standard = standard_placement(config)
    teachers, decoding = _fit_passes(config, load, hosts, num_gpus) or (standard.teachers, standard.decoding)
    trainers, workers = standard.trainers, _worker_counts(load.ray)[-1]
    for count, resources in _training_options(config.trainers, load.ray, num_gpus):
        fits = first_shortage(training_demands(resources, RayConfig(workers=count)), hosts) is None
        if fits and not share_gpus(resources, count):
            trainers, workers = resources, count
            break
    trials = (_fill_in(config.trials, STANDARD.trials, scale) for scale in SCALES)
    fitting = (resources for resources in trials if first_shortage(trial_demands(resources), hosts) is None)
    return Placement(teachers, trainers, decoding, next(fitting, standard.trials)), workers


def _fill_in(config: ResourcesConfig, standard: Resources, scale: float = 1, gpu: float = 0) -> Resources:
    """Return what the user set; what is left open becomes ``scale`` times the standard CPUs, and ``gpu``."""
    return Resources(
        cpu=_round_down(standard.cpu * scale) if config.cpu is None else config.cpu,
        gpu=gpu if config.gpu is None else config.gpu,
        resources=config.resources,
        label=config.label,
    )


def _round_down(amount: float) -> float:
    """Round down to a multiple of the smallest amount that Ray counts."""
    # The inner rounding removes floating-point errors: 0.57 * 10,000 is 5699.999999999999.
    return math.floor(round(amount * RAY_UNITS, 3)) / RAY_UNITS


def _fit_passes(
    config: PlacementConfig, load: Workload, hosts: Sequence[Host], num_gpus: int
) -> tuple[Resources, Resources] | None:
    """Return the largest resources of teachers and of decoding with which every pass fits, if any."""
    actors = load.num_teachers * load.extract.actors_per_teacher
    gpu = _part_of_gpu(actors, max(1, load.extract.reducers), num_gpus)
    for scale in SCALES:
        # Teachers and decoding may have separate nodes. So shrink only one of the two if that is enough:
        # shrinking decoding tasks without need would only let more of them run at the same time.
        for teacher_scale, decoding_scale in ((scale, 1), (1, scale), (scale, scale)):
            teachers = _fill_in(config.teachers, STANDARD.teachers, teacher_scale, gpu)
            decoding = _fill_in(config.decoding, STANDARD.decoding, decoding_scale)
            if first_shortage(pass_demands(teachers, decoding, load), hosts) is None:
                return teachers, decoding
    return None


def _part_of_gpu(actors: int, downstream: int, num_gpus: int) -> float:
    """Return the part of a GPU for each teacher actor: a whole one if there are enough, else a fraction.

    Ray never splits an actor's fraction over two GPUs, so the fraction is one over a whole number of actors.

    Args:
        actors: Number of actors of all teachers.
        downstream: Number of evaluators or reducers, which use GPUs too if the teachers leave room.
        num_gpus: Number of GPUs that may be used.
    """
    if num_gpus == 0 or actors <= num_gpus:
        return float(min(num_gpus, 1))
    return _round_down(1 / math.ceil((actors + downstream) / num_gpus))


def _worker_counts(ray: RayConfig) -> tuple[int, ...]:
    """Return the smallest group sizes to try, the preferred one first: 2, then 1 if `ray.workers` is null."""
    return (ray.worker_range[0], 1) if ray.workers is None else (ray.worker_range[0],)


def _training_options(
    config: ResourcesConfig, ray: RayConfig, num_gpus: int
) -> Iterator[tuple[int, Resources]]:
    """Yield numbers of workers with the resources of each, the preferred ones first: on GPUs, then on CPUs.

    Workers share a core if there are too few cores. They never share a GPU: NCCL needs one for each of them.
    """
    counts = _worker_counts(ray)
    free_gpus = num_gpus if config.gpu is None else 0
    on_gpus = [(count, 1.0) for count in counts if 0 < count <= free_gpus]
    for options in (on_gpus, [(count, 0.0) for count in counts]):
        for count, gpu in options:
            yield count, _fill_in(config, STANDARD.trainers, 1, gpu)
        for count, gpu in options[-1:]:  # only the smallest count is tried with fewer CPUs
            for scale in SCALES[1:]:
                yield count, _fill_in(config, STANDARD.trainers, scale, gpu)


def describe_choice(
    config: PlacementConfig, ray: RayConfig, placement: Placement, workers: int
) -> str | None:
    """Return one line on what differs from the standard resources and workers; None if nothing does.

    Args:
        config: The ``placement`` section of the config.
        ray: The ``ray`` section of the config.
        placement: The resources that were chosen.
        workers: The number of training workers that was chosen.
    """
    standard = standard_placement(config)
    parts = [
        f"{name} {_format_resources(getattr(placement, name))}"
        for name in ("teachers", "decoding", "trainers", "trials")
        if getattr(placement, name) != getattr(standard, name)
    ]
    if workers != ray.worker_range[0]:
        parts.append(f"{workers} training worker{'s' if workers > 1 else ''}")
    return f"placement chosen to fit: {'; '.join(parts)}" if parts else None


def _format_resources(resources: Resources) -> str:
    return f"{resources.cpu:g} CPU" + (f" + {resources.gpu:g} GPU" if resources.gpu else "")
