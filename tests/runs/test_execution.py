"""Training in the process of the command."""

import errno
from types import SimpleNamespace

import pytest
import torch

from ka_ray.config import RayConfig, Resources
from ka_ray.errors import ClusterError, InputError
from ka_ray.runs.execution import train
from ka_ray.runs.timeline import Timeline
from ka_ray.training.fit import Progress


def make_run(report):
    """Return what `train` uses of a run without workers."""
    placement = SimpleNamespace(trainers=Resources(cpu=3))
    resources = SimpleNamespace(ray=RayConfig(workers=0), placement=placement)
    notes: list[str] = []
    return SimpleNamespace(
        resources=resources, report_epoch=report, notify=notes.append, notes=notes, timeline=Timeline()
    )


@pytest.fixture
def set_threads():
    """The function that sets torch's number of threads, which is restored at the end."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("available", "used"), [(4, 3), (2, 2)])
def test_the_work_gets_the_threads_of_its_share_and_its_reports_arrive_in_order(set_threads, available, used):
    set_threads(available)
    reports, seen = [], []
    run = make_run(reports.append)

    def work(device, report):
        seen.append((device, torch.get_num_threads()))
        report("first")
        report("second")

    train(run, "learning", work)
    assert seen == [(torch.device("cpu"), used)]
    assert reports == ["first", "second"]
    assert run.notes == ["learning: in this process"]
    assert torch.get_num_threads() == available


def test_an_error_in_a_report_is_raised_when_the_work_has_ended():
    done = []

    def fail(progress: Progress) -> None:
        raise ConnectionError("the tracker is gone")

    def work(device, report):
        report("first")
        done.append(True)

    with pytest.raises(ConnectionError, match="the tracker is gone"):
        train(make_run(fail), "learning", work)
    assert done == [True]


def test_threads_are_restored_after_an_error_of_the_work(set_threads):
    set_threads(4)

    def work(device, report):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        train(make_run(lambda progress: None), "learning", work)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate"), InputError, "a GPU is out of memory; lower"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), ClusterError, "the disk is full"),
    ],
)
def test_what_runs_out_has_the_message_that_it_has_in_workers(error, kind, message):
    def work(device, report):
        raise error

    with pytest.raises(kind, match=message):
        train(make_run(lambda progress: None), "learning", work)
