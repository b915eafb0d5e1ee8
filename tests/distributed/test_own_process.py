"""When the command trains by itself, and with which resources."""

import json

import pytest

from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.resource_plan import plan_resources
from ka_ray.errors import InputError

HOST = Host("here", {"CPU": 4.0, "GPU": 4.0})
OWN, OTHER = Cluster((HOST,), own=True), Cluster((HOST,))
TWO = Cluster((HOST, Host("there", {"CPU": 4.0})))
GROWING = Cluster((HOST,), grows=True)


@pytest.mark.parametrize(
    ("cluster", "gpus", "overrides", "workers", "trainers"),
    [
        (OWN, 0, [], 0, (4, 0)),
        (OWN, 1, [], 0, (4, 1)),
        (OWN, 2, [], 2, (1, 1)),
        (OWN, 2, ["placement.trainers.gpu=0"], 0, (4, 0)),
        (OWN, 2, ["ray.workers=0"], 0, (4, 1)),
        (OWN, 0, ["ray.workers=1"], 1, (1, 0)),
        (OWN, 0, ["placement.trainers.cpu=3"], 0, (3, 0)),
        (OWN, 0, ["placement.trainers.gpu=1"], 2, (1, 1)),
        (OWN, 0, ["placement.trainers.label={group: '!x'}"], 2, (1, 0)),
        (OTHER, 0, [], 2, (1, 0)),
        (OTHER, 1, [], 1, (1, 1)),
        (OTHER, 1, ["ray.workers=0"], 0, (4, 1)),
        (TWO, 0, [], 2, (1, 0)),
        (GROWING, 0, [], 2, (1, 0)),
    ],
)
def test_the_command_trains_by_itself_on_its_own_ray_with_at_most_one_gpu(
    load_config, monkeypatch, cluster, gpus, overrides, workers, trainers
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    plan = plan_resources(load_config(*overrides), cluster)
    chosen = plan.placement.trainers
    assert (plan.ray.workers, (chosen.cpu, chosen.gpu)) == (workers, trainers)
    if workers == 0:  # it is no choice to fit: nothing has been made smaller
        assert [note for note in plan.notes if note.startswith("placement chosen") and "train" in note] == []


def test_more_cores_than_there_are_are_refused_for_the_command_too(load_config):
    with pytest.raises(InputError, match=r"training needs 1 process x 5 = 5 CPU.*placement\.trainers\.cpu"):
        plan_resources(load_config("placement.trainers.cpu=5"), OWN)


@pytest.mark.parametrize(
    ("cluster", "trainers", "message"),
    [
        (TWO, {}, "this cluster has 2 nodes; give a number of workers"),
        (GROWING, {}, "this cluster grows; give a number of workers"),
        (OWN, {"gpu": 1}, "remove gpu, label and resources from placement.trainers"),
        (OWN, {"label": {"a": "b"}}, "remove gpu, label and resources from placement.trainers"),
        (OWN, {"resources": {"disk": 1}}, "remove gpu, label and resources from placement.trainers"),
    ],
)
def test_no_workers_are_refused_where_the_command_cannot_train(load_config, cluster, trainers, message):
    config = load_config("ray.workers=0", f"placement.trainers={json.dumps(trainers)}")
    with pytest.raises(InputError, match=message):
        plan_resources(config, cluster)
