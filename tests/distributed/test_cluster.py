import pytest

from ka_ray.config import RayConfig, TuneConfig
from ka_ray.distributed.cluster import Cluster, check_fits, check_training_fits, check_trial_fits
from ka_ray.distributed.errors import unwrap
from ka_ray.errors import InputError

TWO_CPUS = Cluster(nodes=1, cpus=2, gpus=0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ray.workers=4"], "training needs 4 workers x 1 = 4 CPUs, the cluster has 2; lower ray.workers"),
        (["ray.gpus_per_worker=1"], "training needs 2 workers x 1 = 2 GPUs, the cluster has 0"),
        (
            ["extract.actors_per_teacher=3"],
            "2 teachers x 3 actors x 0.5 + 0.5 for reading and writing = 3.5 CPUs",
        ),
        (
            ["extract.reducers=3"],
            "(2 teachers x 1 actors + 3 reducers) x 0.5 + 0.25 for reading = 2.75 CPUs",
        ),
        (
            ["extract.gpus_per_teacher=1"],
            "2 teachers x 1 actors x 1 = 2 GPUs, the cluster has 0; lower extract",
        ),
    ],
)
def test_a_plan_larger_than_the_cluster_is_refused_with_the_arithmetic(load_config, overrides, words):
    with pytest.raises(InputError) as error:
        check_fits(load_config(*overrides), TWO_CPUS)
    assert "larger than the cluster" in str(error.value)
    assert words in str(error.value)


def test_a_plan_that_just_fits_passes(load_config):
    check_fits(load_config("extract.cpus_per_teacher=0.58"), TWO_CPUS)
    with pytest.raises(InputError):
        check_fits(load_config("extract.cpus_per_teacher=0.59"), TWO_CPUS)
    with pytest.raises(InputError):
        check_training_fits(RayConfig(workers=3), TWO_CPUS)


def test_a_trial_larger_than_the_cluster_is_refused():
    check_trial_fits(TuneConfig(cpus_per_trial=2), TWO_CPUS)
    with pytest.raises(InputError, match=r"a trial needs 3 = 3 CPUs, .* lower tune.cpus_per_trial"):
        check_trial_fits(TuneConfig(cpus_per_trial=3), TWO_CPUS)
    with pytest.raises(InputError, match=r"lower tune.gpus_per_trial"):
        check_trial_fits(TuneConfig(gpus_per_trial=0.5), TWO_CPUS)


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
