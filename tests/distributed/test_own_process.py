"""When the command trains by itself, and with which resources."""

import json

import pytest

from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.resource_plan import plan_resources
from ka_ray.errors import InputError

ONE = (Host("here", {"CPU": 4.0, "GPU": 4.0}),)
TWO = (*ONE, Host("there", {"CPU": 4.0}))


@pytest.mark.parametrize(
    ("cluster", "gpus", "overrides", "workers", "trainers"),
    [
        (Cluster(ONE), 0, [], 0, (4, 0)),
        (Cluster(ONE), 1, [], 0, (4, 1)),
        (Cluster(ONE), 2, [], 2, (1, 1)),
        (Cluster(ONE), 2, ["placement.trainers.gpu=0"], 0, (4, 0)),
        (Cluster(ONE), 2, ["ray.workers=0"], 0, (4, 1)),
        (Cluster(ONE), 0, ["ray.workers=1"], 1, (1, 0)),
        (Cluster(ONE), 0, ["placement.trainers.cpu=3"], 0, (3, 0)),
        (Cluster(ONE), 0, ["placement.trainers.gpu=1"], 2, (1, 1)),
        (Cluster(TWO), 0, [], 2, (1, 0)),
        (Cluster(ONE, grows=True), 0, [], 2, (1, 0)),
    ],
)
def test_the_command_trains_by_itself_on_one_machine_with_at_most_one_gpu(
    load_config, monkeypatch, cluster, gpus, overrides, workers, trainers
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    plan = plan_resources(load_config(*overrides), cluster)
    assert (plan.ray.workers, (plan.placement.trainers.cpu, plan.placement.trainers.gpu)) == (
        workers,
        trainers,
    )
    assert [note for note in plan.notes if "training worker" in note] == []


def test_who_asks_for_a_place_on_a_labelled_node_gets_workers(load_config):
    labelled = (Host("here", {"CPU": 4.0}, {"group": "big"}),)
    plan = plan_resources(load_config("placement.trainers.label={group: big}"), Cluster(labelled))
    assert plan.ray.workers == 2


@pytest.mark.parametrize(
    ("cluster", "trainers", "message"),
    [
        (Cluster(TWO), {}, "this cluster has 2 nodes; give a number of workers"),
        (Cluster(ONE, grows=True), {}, "this cluster grows; give a number of workers"),
        (Cluster(ONE), {"gpu": 1}, "remove gpu, label and resources from placement.trainers"),
        (Cluster(ONE), {"label": {"a": "b"}}, "remove gpu, label and resources from placement.trainers"),
        (Cluster(ONE), {"resources": {"disk": 1}}, "remove gpu, label and resources from placement.trainers"),
    ],
)
def test_no_workers_are_refused_where_the_command_cannot_train(load_config, cluster, trainers, message):
    config = load_config("ray.workers=0", f"placement.trainers={json.dumps(trainers)}")
    with pytest.raises(InputError, match=message):
        plan_resources(config, cluster)
