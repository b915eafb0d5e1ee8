"""The resources per process that are chosen for a machine, compared with arithmetic done by hand."""

import itertools
from fractions import Fraction

import pytest

from ka_ray.config import ExtractConfig, PlacementConfig, RayConfig, Resources
from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.placement import (
    STANDARD,
    Placement,
    Workload,
    describe_choice,
    first_shortage,
    fit_placement,
    pass_demands,
    training_demands,
)
from ka_ray.distributed.resource_plan import _check_gpus_of_workers, choose_resources
from ka_ray.errors import InputError

CPUS, TEACHERS = (1, 2, 4), (2, 3, 8)


def machine(cpus: float, gpus: int = 0) -> list[Host]:
    return [Host("here", {"CPU": cpus, "GPU": gpus})]


def fit(
    cpus: float,
    num_teachers: int,
    gpus: int = 0,
    workers: object = None,
    actors: int = 1,
    reducers: int = 1,
    **given,
) -> tuple[Placement, int]:
    extract = ExtractConfig(actors_per_teacher=actors, reducers=reducers)
    load = Workload(num_teachers, extract, RayConfig(workers=workers))
    return fit_placement(PlacementConfig.model_validate(given), load, machine(cpus, gpus), gpus)


def to_fraction(amount: float) -> Fraction:
    """Return an amount as a fraction; it must be a multiple of the smallest amount of Ray, 1 / 10,000."""
    fraction = Fraction(amount).limit_denominator(10_000)
    assert abs(float(fraction) - amount) < 1e-9
    assert (fraction * 10_000).denominator == 1
    return fraction


@pytest.mark.parametrize(("cpus", "teachers"), list(itertools.product(CPUS, TEACHERS)))
@pytest.mark.parametrize(("actors", "reducers"), [(1, 1), (3, 1), (1, 4)])
def test_the_chosen_resources_let_every_pass_fit(cpus, teachers, actors, reducers):
    placement, workers = fit(cpus, teachers, actors=actors, reducers=reducers)
    teacher, decoding = to_fraction(placement.teachers.cpu), to_fraction(placement.decoding.cpu)
    teacher_cpus = teachers * actors * teacher
    assert teacher_cpus + 2 * decoding <= cpus  # extraction: one task decodes, one writes
    assert teacher_cpus + teacher + decoding <= cpus  # evaluation: one actor with the student
    assert teacher_cpus + reducers * teacher + decoding <= cpus  # a pass that sums up moments
    assert workers * to_fraction(placement.trainers.cpu) <= cpus
    assert to_fraction(placement.trials.cpu) <= cpus
    assert min(teacher, decoding) > 0
    assert workers == min(2, cpus)
    assert (placement.trainers, placement.trials) == (STANDARD.trainers, STANDARD.trials)

    num_actors = teachers * actors + max(1, reducers)
    needed = max(num_actors * 0.5 + 0.25, teachers * actors * 0.5 + 2 * 0.25)
    if needed <= cpus:
        assert placement == STANDARD
    else:  # the standard amounts, reduced by a common factor and rounded down to two digits
        assert teacher == 2 * decoding
        assert 0.8 < needed * float(teacher) / 0.5 / cpus <= 1


@pytest.mark.parametrize("cpus", [1, 2, 3])
@pytest.mark.parametrize("teachers", [1, 20, 100])
def test_any_number_of_teachers_fits_on_one_to_three_cpus(cpus, teachers):
    load = Workload(teachers, ExtractConfig(), RayConfig())
    placement, workers = fit_placement(PlacementConfig(), load, machine(cpus))
    demands = pass_demands(placement.teachers, placement.decoding, load)
    assert first_shortage(demands, machine(cpus)) is None
    assert (
        first_shortage(training_demands(placement.trainers, RayConfig(workers=workers)), machine(cpus))
        is None
    )


@pytest.mark.parametrize(
    ("cpus", "given", "expected"),
    [
        (1, None, (1, 1)),
        (2, None, (2, 1)),
        (64, None, (2, 1)),  # never more than the standard amount
        (1, 2, (2, 0.5)),  # the number set by the user is kept
        (2, 4, (4, 0.5)),
        (1, {"min": 2, "max": 8}, (2, 0.5)),
        (4, {"min": 2, "max": 8}, (2, 1)),
    ],
)
def test_the_number_and_cpus_of_training_workers_fit(cpus, given, expected):
    placement, workers = fit(cpus, 2, workers=given)
    assert (workers, placement.trainers.cpu, placement.trainers.gpu) == (*expected, 0)


@pytest.mark.parametrize(
    ("gpus", "teachers", "teacher_gpu", "given", "workers", "trainer_gpu"),
    [
        (1, 1, 1, None, 1, 1),
        (1, 2, 0.3333, None, 1, 1),  # the student is evaluated on the same GPU
        (1, 2, 0.3333, 2, 2, 0),  # NCCL needs a GPU for each worker
        (2, 2, 1, None, 2, 1),
        (2, 3, 0.5, None, 2, 1),
        (2, 8, 0.2, 3, 3, 0),
        (8, 2, 1, None, 2, 1),
        (8, 2, 1, {"min": 4, "max": 8}, 4, 1),
    ],
)
def test_gpus_are_shared_if_there_are_fewer_than_teachers(
    gpus, teachers, teacher_gpu, given, workers, trainer_gpu
):
    placement, chosen = fit(16, teachers, gpus, workers=given)
    assert (placement.teachers.gpu, placement.decoding.gpu, placement.trials.gpu) == (teacher_gpu, 0, 0)
    assert (chosen, placement.trainers.gpu) == (workers, trainer_gpu)
    # A process gets its fraction from a single GPU, so each GPU has room for a whole number of actors.
    assert teachers <= gpus * int(1 / placement.teachers.gpu)


@pytest.mark.parametrize(
    ("gpu", "workers", "gpus", "chosen", "shared"),
    [
        (0.5, None, 2, 1, False),  # two ranks of NCCL could get the same GPU, so one worker is chosen
        (0.5, 2, 2, 2, True),
        (0.6, None, 2, 2, False),  # two of 0.6 never share
        (0.25, {"min": 1, "max": 3}, 1, 1, True),
        (1, 2, 2, 2, False),
        (0, 2, 1, 2, False),
    ],
)
def test_training_workers_that_may_share_a_gpu_are_refused_with_the_word_nccl(
    gpu, workers, gpus, chosen, shared
):
    placement = PlacementConfig.model_validate({"trainers": {"gpu": gpu}, "teachers": {"gpu": 0}})
    cluster = Cluster((Host("here", {"CPU": 16, "GPU": gpus}),))
    config = RayConfig(workers=workers)
    plan = choose_resources(placement, Workload(2, ExtractConfig(), config), cluster)
    assert plan.ray.worker_range[0] == chosen
    if not shared:
        return _check_gpus_of_workers(plan)
    with pytest.raises(InputError, match=r"placement\.trainers\.gpu: .* NCCL, which refuses"):
        _check_gpus_of_workers(plan)


def test_resources_set_by_the_user_are_kept_and_the_others_reduced():
    placement, _ = fit(2, 3, teachers={"cpu": 0.45})
    assert (placement.teachers.cpu, placement.decoding.cpu) == (0.45, 0.2)
    placement, _ = fit(2, 3, decoding={"cpu": 0.5})
    assert (placement.teachers.cpu, placement.decoding.cpu) == (0.33, 0.5)
    placement, workers = fit(2, 3, trainers={"cpu": 2})
    assert (placement.trainers.cpu, workers) == (2, 1)
    placement, workers = fit(16, 2, gpus=1, trainers={"gpu": 0}, teachers={"gpu": 0, "label": {}})
    assert (placement.teachers.gpu, placement.trainers.gpu, workers) == (0, 0, 2)


def test_resources_that_the_user_set_too_large_are_kept_and_reported_as_a_shortage():
    placement, _ = fit(2, 4, teachers={"cpu": 0.5})
    assert (placement.teachers.cpu, placement.decoding.cpu) == (0.5, STANDARD.decoding.cpu)
    problem = first_shortage(
        pass_demands(placement.teachers, placement.decoding, Workload(4, ExtractConfig(), RayConfig())),
        machine(2),
    )
    assert (
        "4 teachers x 1 actors x 0.5 + 1 task of decoding x 0.25 + 1 task of writing x 0.25 = 2.5" in problem
    )
    assert fit(2, 2, trials={"cpu": 3})[0].trials.cpu == 3


def test_on_several_nodes_only_resources_that_do_not_fit_are_reduced():
    hosts = [
        Host("small", {"CPU": 1}, {"group": "teachers"}),
        Host("large", {"CPU": 8}, {"group": "decoding"}),
    ]
    config = PlacementConfig.model_validate(
        {"teachers": {"label": {"group": "teachers"}}, "decoding": {"label": {"group": "decoding"}}}
    )
    load = Workload(3, ExtractConfig(), RayConfig())
    placement, workers = fit_placement(config, load, hosts)
    assert placement.teachers == Resources(cpu=0.25, label={"group": "teachers"})
    assert placement.decoding == Resources(cpu=0.25, label={"group": "decoding"})
    assert (placement.trainers, workers) == (STANDARD.trainers, 2)
    hosts_short_of_decoding = [
        Host("large", {"CPU": 8}, {"group": "teachers"}),
        Host("small", {"CPU": 0.25}, {"group": "decoding"}),
    ]
    placement, _ = fit_placement(config, load, hosts_short_of_decoding)
    assert (placement.teachers.cpu, placement.decoding.cpu) == (0.5, 0.125)


def test_the_chosen_resources_are_described_in_one_line_unless_they_are_the_standard_ones():
    config, ray = PlacementConfig(), RayConfig()
    assert describe_choice(config, ray, *fit(4, 2)) is None
    assert describe_choice(config, ray, *fit(2, 3)) == (
        "placement chosen to fit: teachers 0.44 CPU; decoding 0.22 CPU"
    )
    assert describe_choice(config, ray, *fit(1, 3)) == (
        "placement chosen to fit: teachers 0.22 CPU; decoding 0.11 CPU; 1 training worker"
    )
    assert describe_choice(config, ray, *fit(4, 2, gpus=1)) == (
        "placement chosen to fit: teachers 0.5 CPU + 0.3333 GPU; trainers 1 CPU + 1 GPU; 1 training worker"
    )
    given = PlacementConfig.model_validate({"teachers": {"cpu": 0.25}})
    assert describe_choice(given, ray, *fit(2, 3, teachers={"cpu": 0.25})) is None
