import errno

import pytest

from ka_ray.config import PlacementConfig, RayConfig, Resources
from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import (
    Cluster,
    check_fits,
    check_training_fits,
    check_trial_fits,
    shortage_of_workers,
    workers_with_room,
)
from ka_ray.distributed.failures import dead_actor, lost, unwrap
from ka_ray.distributed.resources import Pools
from ka_ray.errors import ClusterError, InputError

TWO_CPUS = Cluster((Host("here", {"CPU": 2.0}),))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ray.workers=4"], "training needs 4 workers x 1 = 4 CPU. No room is left for 4 workers"),
        (["ray.workers={min: 3, max: 8}"], "training needs 3 workers x 1 = 3 CPU"),
        (["placement.trainers.gpu=1"], "2 workers x 1 = 2 GPU. No room"),
        (
            ["extract.actors_per_teacher=3"],
            "2 teachers x 3 actors x 0.5 + 1 task of decoding x 0.25 + 1 task of writing x 0.25 = 3.5 CPU",
        ),
        (
            ["extract.reducers=3"],
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
def test_a_plan_larger_than_the_cluster_is_refused_with_the_arithmetic(load_config, overrides, words):
    with pytest.raises(InputError) as error:
        check_fits(load_config(*overrides), TWO_CPUS)
    assert "larger than the cluster" in str(error.value)
    assert words in str(error.value)
    check_fits(
        load_config(*overrides), Cluster(TWO_CPUS.hosts, grows=True)
    )  # nodes come when they are asked for


def test_a_plan_that_just_fits_passes(load_config):
    check_fits(load_config("placement.teachers.cpu=0.58"), TWO_CPUS)
    with pytest.raises(InputError):
        check_fits(load_config("placement.teachers.cpu=0.59"), TWO_CPUS)
    with pytest.raises(InputError):
        check_training_fits(RayConfig(workers=3), PlacementConfig(), TWO_CPUS)
    check_training_fits(RayConfig(workers={"min": 2, "max": 9}), PlacementConfig(), TWO_CPUS)


def test_a_trial_larger_than_the_cluster_is_refused():
    check_trial_fits(PlacementConfig(trials={"cpu": 2}), TWO_CPUS)
    with pytest.raises(InputError, match=r"1 trial x 3 = 3 CPU. .* Lower placement.trials"):
        check_trial_fits(PlacementConfig(trials={"cpu": 3}), TWO_CPUS)
    with pytest.raises(InputError, match=r"1 trial x 0.5 = 0.5 GPU"):
        check_trial_fits(PlacementConfig(trials={"gpu": 0.5}), TWO_CPUS)


def test_the_users_message_is_dug_out_of_what_ray_wraps_around_it():
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


def wrapped(inner: Exception) -> Exception:
    outer = RuntimeError("the dataset failed")
    outer.__cause__ = inner
    return outer


def test_lost_workers_are_told_from_mistakes():
    from ray.exceptions import ActorDiedError, NodeDiedError, RayActorError
    from ray.train.v2.api.exceptions import WorkerGroupError

    gone = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:51437")
    for error in (ActorDiedError(), NodeDiedError("node"), gone):
        assert lost(error)
        assert lost(wrapped(error))
        assert lost(WorkerGroupError("one of two", {0: ValueError("collateral"), 1: error}))
    in_init = RayActorError("id", "The actor died because of an error raised in its creation task", True)
    for error in (ValueError("mistake"), RuntimeError("size mismatch"), InputError("bad"), in_init):
        assert not lost(error)
        assert not lost(wrapped(error))
    assert dead_actor(
        wrapped(RayActorError("abc", "It died.\nThe worker was killed due to the node OOM."))
    ) == (
        "abc",
        "its node ran out of memory",
    )
    assert dead_actor(ValueError("mistake")) is None
    unsure = (
        "Worker exits unexpectedly.\n(1) The process is killed by SIGKILL by OOM killer.\nConnection error."
    )
    assert dead_actor(RayActorError("abc", unsure)) == ("abc", "Connection error.")


def test_what_ran_out_is_put_into_words():
    full = wrapped(OSError(errno.ENOSPC, "No space left on device", "/data/x.arrow"))
    assert isinstance(unwrap(full), ClusterError)
    assert str(unwrap(full)).startswith("the disk is full at /data/x.arrow; what was done is kept")
    arrow = "OSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"
    assert str(unwrap(wrapped(RuntimeError(f"UDF failed\n{arrow}")))).startswith("the disk is full; what was")
    gpu = wrapped(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert isinstance(unwrap(gpu), InputError)
    assert "lower extract.batch_size" in str(unwrap(gpu))


def hosts_of(monkeypatch, *hosts: Host) -> None:
    for module in ("cluster", "resources"):
        monkeypatch.setattr(f"ka_ray.distributed.{module}.current_hosts", lambda: hosts)


def test_a_student_takes_a_gpu_only_where_its_own_nodes_have_one_left(monkeypatch):
    teachers = {"cpu": 0.5, "gpu": 1, "label": {"group": "teachers"}}
    pools = Pools(placement=PlacementConfig(teachers=teachers))
    labelled = Host("a", {"CPU": 8, "GPU": 2}, {"group": "teachers"})
    hosts_of(monkeypatch, labelled, Host("b", {"CPU": 8, "GPU": 8}, {"group": "trainers"}))
    assert pools.downstream_resources(2).gpu == 0  # the GPUs of others are none of its own
    assert pools.downstream_resources(1).gpu == 1
    hosts_of(monkeypatch, labelled, Host("c", {"CPU": 1, "GPU": 1}, {"group": "teachers"}))
    assert pools.downstream_resources(2).gpu == 1


def test_an_elastic_group_with_a_label_asks_for_no_more_than_the_labelled_nodes_hold(monkeypatch):
    hosts_of(monkeypatch, Host("a", {"CPU": 3}, {"group": "trainers"}), Host("b", {"CPU": 16}))
    elastic = RayConfig(workers={"min": 1, "max": 8})
    assert workers_with_room(elastic, Resources(label={"group": "trainers"})) == (1, 3)
    assert workers_with_room(elastic, Resources()) == (1, 8)
    assert shortage_of_workers(RayConfig(workers=4), Resources(label={"group": "trainers"})) is not None
    assert shortage_of_workers(RayConfig(workers=3), Resources(label={"group": "trainers"})) is None


def test_a_group_waits_for_nodes_and_says_so_but_not_for_ever(monkeypatch):
    from ka_ray.distributed import train

    problems, told = ["no room", "no room", None], []
    monkeypatch.setattr(train, "POLL_S", 0.01)
    monkeypatch.setattr(train, "shortage_of_workers", lambda config, share: problems.pop(0))
    train._wait_for_room(RayConfig(), Resources(), told.append)
    assert (problems, told) == ([], ["waiting for nodes: no room"])
    monkeypatch.setattr(train, "shortage_of_workers", lambda config, share: "no room")
    with pytest.raises(ClusterError, match=r"after ray\.timeout_s = 1: no room"):
        train._wait_for_room(RayConfig(timeout_s=1), Resources(), told.append)


def test_a_store_or_a_peer_that_does_not_answer_is_no_mistake():
    from torch.distributed import DistNetworkError, DistStoreError

    for error in (
        DistNetworkError("Connection was likely closed. Did the remote server shutdown?"),
        DistStoreError("Timed out after 61 seconds waiting for clients. 1/2 clients joined."),
        ConnectionResetError("peer"),
        TimeoutError("s3"),
    ):
        assert lost(wrapped(error))
