"""Fitting the plan of a run to a cluster, and telling lost workers from mistakes of the user."""

import errno
import json
from dataclasses import replace

import pytest

from ka_ray.config import ExtractConfig, RayConfig, Resources
from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.failures import RestartsExhausted, cause_of_death, lost, mentions, unwrap
from ka_ray.distributed.placement import STANDARD, Workload
from ka_ray.distributed.resource_plan import (
    check_trial_fits,
    choose_resources,
    plan_resources,
    shortage_of_workers,
    workers_with_room,
)
from ka_ray.distributed.resources import Pools
from ka_ray.errors import ClusterError, InputError

TWO_CPUS = Cluster((Host("here", {"CPU": 2.0}),))


TEACHER_CPUS = "placement.teachers.cpu=0.5"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["ray.workers=4", "placement.trainers.cpu=1"],
            "training needs 4 workers x 1 = 4 CPU. No room is left",
        ),
        (
            ["ray.workers={min: 3, max: 8}", "placement.trainers.cpu=1"],
            "training needs 3 workers x 1 = 3 CPU",
        ),
        (["placement.trainers.cpu=3"], "training needs 1 workers x 3 = 3 CPU"),
        (["ray.workers=2", "placement.trainers.gpu=1"], "2 workers x 1 = 2 GPU. No room"),
        (
            ["extract.actors_per_teacher=3", TEACHER_CPUS],
            "2 teachers x 3 actors x 0.5 + 1 task of decoding x 0.25 + 1 task of writing x 0.25 = 3.5 CPU",
        ),
        (
            ["extract.reducers=3", TEACHER_CPUS],
            "2 teachers x 1 actors x 0.5 + 3 reducers x 0.5 + 1 task of decoding x 0.25 = 2.75 CPU",
        ),
        (["placement.teachers.gpu=1"], "2 teachers x 1 actors x 1 = 2 GPU"),
        (
            ["placement.teachers.label={group: teachers}"],
            "on nodes labelled group=teachers; the nodes have here 2",
        ),
        (["placement.decoding.resources={disk: 1}"], "1 task of writing x 1 = 2 disk"),
    ],
)
def test_a_plan_larger_than_the_cluster_is_refused_with_the_arithmetic(load_config, overrides, message):
    with pytest.raises(InputError) as error:
        plan_resources(load_config(*overrides), TWO_CPUS)
    assert "larger than the cluster" in str(error.value)
    assert message in str(error.value)
    # A cluster with an autoscaler may add nodes on demand, so nothing is refused.
    plan_resources(load_config(*overrides), Cluster(TWO_CPUS.hosts, grows=True))


def test_a_plan_that_just_fits_is_accepted_and_a_slightly_larger_one_refused(load_config):
    decoding = "placement.decoding.cpu=0.25"
    plan_resources(load_config("placement.teachers.cpu=0.58", decoding), TWO_CPUS)
    with pytest.raises(InputError):
        plan_resources(load_config("placement.teachers.cpu=0.59", decoding), TWO_CPUS)
    trainers = "placement.trainers.cpu=1"
    plan_resources(load_config("ray.workers={min: 2, max: 9}", trainers), TWO_CPUS)
    with pytest.raises(InputError):
        plan_resources(load_config("ray.workers=3", trainers), TWO_CPUS)


def test_a_trial_larger_than_the_cluster_is_refused(load_config):
    def check(*overrides: str) -> None:
        check_trial_fits(plan_resources(load_config(*overrides), TWO_CPUS), TWO_CPUS)

    check("placement.trials.cpu=2")
    with pytest.raises(InputError, match=r"1 trial x 3 = 3 CPU. .* Lower placement.trials"):
        check("placement.trials.cpu=3")
    with pytest.raises(InputError, match=r"1 trial x 0.5 = 0.5 GPU"):
        check("placement.trials.gpu=0.5")


TWO_GPUS = Host("here", {"CPU": 4.0, "GPU": 2.0})
BOTH_BECOME_ZERO = "placement.teachers.gpu and placement.trainers.gpu is null and becomes 0"


@pytest.mark.parametrize(
    ("hosts", "visible_gpus", "workers", "expected", "note"),
    [
        ([TWO_GPUS], 2, None, (1, 1, 2), None),
        ([TWO_GPUS], 1, None, (0.3333, 1, 1), None),
        (
            [TWO_GPUS],
            1,
            2,
            (0.3333, 0, 2),
            "placement.trainers.gpu is null and becomes 0: there are fewer GPUs than ray.workers",
        ),
        ([TWO_GPUS], 0, None, (0, 0, 2), f"{BOTH_BECOME_ZERO}: torch finds none"),
        (
            [TWO_GPUS, TWO_GPUS],
            2,
            None,
            (0, 0, 2),
            f"{BOTH_BECOME_ZERO}: set it on a cluster of several nodes",
        ),
    ],
)
def test_gpus_are_used_by_default_only_on_one_machine_whose_torch_finds_them(
    load_config, monkeypatch, hosts, visible_gpus, workers, expected, note
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible_gpus)
    cluster, given = Cluster(tuple(hosts)), json.dumps(workers)
    plan = plan_resources(load_config(f"ray.workers={given}"), cluster)
    placement = plan.placement
    assert (placement.teachers.gpu, placement.trainers.gpu, plan.ray.workers) == expected
    about_gpus = [line for line in plan.notes if line.startswith("Ray has")]
    assert about_gpus == ([] if note is None else [f"Ray has {2 * len(hosts)} GPUs, but {note}"])
    explicit = load_config("placement.teachers.gpu=0", "placement.trainers.gpu=0", f"ray.workers={given}")
    assert plan_resources(explicit, cluster).notes == ()


def test_a_cluster_that_grows_gets_the_standard_resources(load_config):
    config, small_cluster = load_config(), Cluster((Host("head", {"CPU": 1.0}),), grows=True)
    fit = choose_resources(config.placement, Workload(8, config.extract, config.ray), small_cluster)
    assert (fit.placement, fit.ray.workers, fit.notes) == (STANDARD, 2, ())


def test_unwrap_finds_the_users_error_inside_the_errors_of_ray():
    from ray.train.v2.api.exceptions import WorkerGroupError

    failures = {0: RuntimeError("gloo"), 1: InputError("batch_size 8 is larger than the 3 images")}
    outer = RuntimeError("training failed")
    outer.__cause__ = WorkerGroupError("two workers failed", failures)
    assert isinstance(unwrap(outer), InputError)
    assert str(unwrap(outer)) == "batch_size 8 is larger than the 3 images"
    quoted = (
        "Traceback ...\n  raise InputError(\nka_ray.errors.InputError: image x.png cannot be read\nFailed"
    )
    assert str(unwrap(RuntimeError(quoted))) == "image x.png cannot be read"
    plain = RuntimeError("other")
    assert unwrap(plain) is plain


def wrap(inner: Exception) -> Exception:
    """Return an error whose cause is another one, as Ray Data raises it."""
    outer = RuntimeError("the dataset failed")
    outer.__cause__ = inner
    return outer


def test_lost_workers_are_distinguished_from_mistakes():
    from ray.exceptions import ActorDiedError, NodeDiedError, RayActorError
    from ray.train.v2.api.exceptions import WorkerGroupError

    gloo_error = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:51437")
    for error in (ActorDiedError(), NodeDiedError("node"), gloo_error):
        assert lost(error)
        assert lost(wrap(error))
        assert lost(WorkerGroupError("one of two", {0: ValueError("collateral"), 1: error}))
    failed_in_init = RayActorError(
        "id", "The actor died because of an error raised in its creation task", True
    )
    for error in (ValueError("mistake"), RuntimeError("size mismatch"), InputError("bad"), failed_in_init):
        assert not lost(error)
        assert not lost(wrap(error))
    out_of_memory = RayActorError("abc", "It died.\nThe worker was killed due to the node OOM.")
    assert cause_of_death(wrap(out_of_memory)) == "its node ran out of memory"
    assert cause_of_death(ValueError("mistake")) is None
    several_causes = (
        "Worker exits unexpectedly.\n(1) The process is killed by SIGKILL by OOM killer.\nConnection error."
    )
    assert cause_of_death(RayActorError("abc", several_causes)) == "Connection error."


def test_exhausted_restarts_count_as_lost_also_if_only_the_traceback_arrives():
    exhausted = RestartsExhausted("teacher low: its actor")
    quoted = RuntimeError(
        f"Traceback ...\n{RestartsExhausted.__module__}.RestartsExhausted: {exhausted}\nFailed"
    )
    for error in (exhausted, wrap(exhausted), quoted, wrap(quoted)):
        assert lost(error)
        assert mentions(error, "teacher low: its actor")
    assert not lost(RuntimeError("no RestartsExhausted: at the beginning of a line"))
    assert not mentions(wrap(exhausted), "teacher high")


def test_a_full_disk_and_full_gpu_memory_have_a_clear_message():
    disk_full = wrap(OSError(errno.ENOSPC, "No space left on device", "/data/x.arrow"))
    assert isinstance(unwrap(disk_full), ClusterError)
    assert str(unwrap(disk_full)).startswith("the disk is full at /data/x.arrow; finished work is kept")
    arrow = "OSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"
    assert str(unwrap(wrap(RuntimeError(f"UDF failed\n{arrow}")))).startswith(
        "the disk is full; finished work"
    )
    gpu_error = wrap(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert isinstance(unwrap(gpu_error), InputError)
    assert "lower extract.batch_size" in str(unwrap(gpu_error))


def set_current_hosts(monkeypatch, *hosts: Host) -> None:
    """Replace the nodes that Ray reports."""
    for module in ("resource_plan", "resources"):
        monkeypatch.setattr(f"ka_ray.distributed.{module}.current_hosts", lambda: hosts)


def test_a_student_gets_a_gpu_only_if_nodes_with_its_label_have_one_left(monkeypatch):
    teachers = Resources(cpu=0.5, gpu=1, label={"group": "teachers"})
    pools = Pools(placement=replace(STANDARD, teachers=teachers))
    labelled = Host("a", {"CPU": 8, "GPU": 2}, {"group": "teachers"})
    set_current_hosts(monkeypatch, labelled, Host("b", {"CPU": 8, "GPU": 8}, {"group": "trainers"}))
    assert pools.downstream_resources(2).gpu == 0  # the eight GPUs have another label
    assert pools.downstream_resources(1).gpu == 1
    set_current_hosts(monkeypatch, labelled, Host("c", {"CPU": 1, "GPU": 1}, {"group": "teachers"}))
    assert pools.downstream_resources(2).gpu == 1


@pytest.mark.parametrize(
    ("hosts", "teachers", "expected"),
    [
        ([(8, 0)], {"cpu": 1}, (3, 0)),  # as many as actors per teacher
        ([(5.25, 0)], {"cpu": 1}, (2, 0)),  # three CPUs are for teachers, 0.25 for decoding
        ([(5.2, 0)], {"cpu": 1}, (1, 0)),
        ([(3, 0)], {"cpu": 1}, (1, 0)),  # no room, but one is needed: the cluster may grow
        ([(99, 8)], {"cpu": 1, "gpu": 1}, (3, 1)),
        ([(99, 4)], {"cpu": 1, "gpu": 1}, (1, 1)),  # one on a GPU is preferred to three on CPUs
        ([(99, 3)], {"cpu": 1, "gpu": 1}, (3, 0)),
        ([(3.25, 0), (1.5, 0)], {"cpu": 1}, (1, 0)),  # a process cannot use the CPUs of two nodes
    ],
)
def test_there_are_as_many_evaluators_as_actors_per_teacher_if_they_fit(
    monkeypatch, hosts, teachers, expected
):
    nodes = [Host(str(i), {"CPU": cpu, "GPU": gpu}) for i, (cpu, gpu) in enumerate(hosts)]
    set_current_hosts(monkeypatch, *nodes)
    placement = replace(STANDARD, teachers=Resources(**teachers))
    count, resources = Pools(ExtractConfig(actors_per_teacher=3), placement).evaluators(num_teachers=1)
    assert (count, resources.gpu) == expected
    assert resources.cpu == 1


def test_an_elastic_group_with_a_label_requests_only_workers_that_fit_on_labelled_nodes(monkeypatch):
    set_current_hosts(monkeypatch, Host("a", {"CPU": 3}, {"group": "trainers"}), Host("b", {"CPU": 16}))
    elastic = RayConfig(workers={"min": 1, "max": 8})
    assert workers_with_room(elastic, Resources(label={"group": "trainers"})) == (1, 3)
    assert workers_with_room(elastic, Resources()) == (1, 8)
    assert shortage_of_workers(RayConfig(workers=4), Resources(label={"group": "trainers"})) is not None
    assert shortage_of_workers(RayConfig(workers=3), Resources(label={"group": "trainers"})) is None


def test_a_group_waits_for_nodes_with_a_message_and_fails_after_the_timeout(monkeypatch):
    from ka_ray.distributed import train

    problems, messages = ["no room", "no room", None], []
    monkeypatch.setattr(train, "POLL_S", 0.01)
    monkeypatch.setattr(train, "shortage_of_workers", lambda config, share: problems.pop(0))
    train._wait_for_room(RayConfig(), Resources(), messages.append)
    assert (problems, messages) == ([], ["waiting for nodes: no room"])
    monkeypatch.setattr(train, "shortage_of_workers", lambda config, share: "no room")
    with pytest.raises(ClusterError, match=r"after ray\.timeout_s = 1: no room"):
        train._wait_for_room(RayConfig(timeout_s=1), Resources(), messages.append)


def test_failed_connections_to_a_store_or_a_peer_count_as_lost_workers():
    from torch.distributed import DistNetworkError, DistStoreError

    for error in (
        DistNetworkError("Connection was likely closed. Did the remote server shutdown?"),
        DistStoreError("Timed out after 61 seconds waiting for clients. 1/2 clients joined."),
        ConnectionResetError("peer"),
        TimeoutError("s3"),
    ):
        assert lost(wrap(error))
