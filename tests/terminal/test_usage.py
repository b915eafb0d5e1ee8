"""The use of memory and of GPUs, from a fake driver and a fake folder of processes, and beside progress."""

import ctypes
import os
import subprocess
import sys

import pytest

from ka_ray.terminal import nvidia
from ka_ray.terminal.nvidia import Driver, Gpu
from ka_ray.terminal.progress import Display
from ka_ray.terminal.usage import GIB, Usage, UsageMeter, measure_memory
from ka_ray.training.progress import Progress

TWO = (Gpu("A", 80 * GIB, 20 * GIB, 0.5), Gpu("A", 80 * GIB, 10 * GIB, 0.0))


class FakeLibrary:
    """NVML of a machine with one GPU; it fills in what the functions point at."""

    failing = ""

    def __getattr__(self, name):
        return lambda *arguments: 999 if name == self.failing else self.answer(name, arguments)

    def answer(self, name, arguments):
        texts = {"nvmlSystemGetDriverVersion": b"535.104", "nvmlDeviceGetName": b"Test GPU"}
        if name in texts:
            arguments[-2].value = texts[name]
            return 0
        target = arguments[-1]._obj if arguments else None
        if name == "nvmlSystemGetCudaDriverVersion_v2":
            target.value = 12020
        elif name == "nvmlDeviceGetCount_v2":
            target.value = 1
        elif name == "nvmlDeviceGetMemoryInfo":
            target.total, target.used = 80 * GIB, 3 * GIB
        elif name == "nvmlDeviceGetUtilizationRates":
            target.gpu = 37
        return 0


def test_the_driver_tells_its_versions_and_gpus():
    driver = Driver(FakeLibrary())
    assert (driver.version, driver.cuda) == ("535.104", (12, 2))
    assert driver.gpus() == (Gpu("Test GPU", 80 * GIB, 3 * GIB, 0.37),)


def test_a_gpu_that_does_not_measure_its_use_is_idle():
    library = FakeLibrary()
    library.failing = "nvmlDeviceGetUtilizationRates"
    assert Driver(library).gpus()[0].busy == 0


def test_a_driver_that_does_not_work_is_none(monkeypatch):
    library = FakeLibrary()
    library.failing = "nvmlInit_v2"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    nvidia.find_driver.cache_clear()
    assert nvidia.find_driver() is None
    nvidia.find_driver.cache_clear()


def test_a_process_that_has_ended_has_no_memory():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert measure_memory(child.pid) is None


@pytest.mark.parametrize("below", [0, 1])
def test_memory_grows_by_what_a_child_or_its_child_takes(below):
    code = "data = bytearray(b'x' * 200_000_000); print(len(data), flush=True); input()"
    if below:
        code = f"import subprocess, sys; subprocess.call([sys.executable, '-c', {code!r}])"
    before = measure_memory(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout.readline() == "200000000\n"
        after = measure_memory(os.getpid())
        child.stdin.write("\n")
        child.stdin.flush()
    assert before is not None
    assert after is not None
    assert 190_000_000 < after - before < 400_000_000


@pytest.mark.parametrize(
    ("usage", "fields", "text"),
    [
        (Usage(), "", ""),
        (Usage(3 * GIB // 2), "memory_gib=1.50", "memory 1.5 GiB"),
        (
            Usage(GIB, TWO),
            "memory_gib=1.00 gpu_busy=0.25 gpu_memory_gib=30.0",
            "memory 1.0 GiB, 2 GPUs 25 % busy, 30.0 of 160 GiB",
        ),
        (Usage(None, TWO[:1]), "gpu_busy=0.50 gpu_memory_gib=20.0", "GPU 50 % busy, 20.0 of 80 GiB"),
    ],
)
def test_usage_is_written_for_programs_and_for_people(usage, fields, text):
    assert (usage.fields, usage.text) == (fields, text)


def test_the_usage_is_not_measured_for_every_line():
    now, measured = [0.0], []
    meter = UsageMeter(lambda: measured.append(now[0]) or Usage(len(measured)), lambda: now[0])
    for now[0] in (0.0, 1.0, 4.9, 5.0, 9.0, 10.5):
        meter.read()
    assert measured == [0.0, 5.0, 10.5]


def test_a_training_line_has_the_time_left_and_the_usage(capsys):
    display = Display(UsageMeter(lambda: Usage(GIB, TWO)))
    display.show_training(Progress("codes", 2, 8, 5, 5, 1000, 10.0, {"loss": 0.25}))
    assert capsys.readouterr().out == (
        "codes epoch=2/8 images=1000 seconds=10.0 eta_s=30 memory_gib=1.00 gpu_busy=0.25 "
        "gpu_memory_gib=30.0 loss=0.25\n"
    )


def test_a_stage_that_begins_again_says_so_and_its_time_left_is_that_of_the_attempt(capsys):
    display = Display()
    display.show_training(Progress("joint", 4, 4, 5, 5, 400, 80.0, {"loss": 3.0}))
    second = {"waited": 0.0, "attempt": 2}
    display.show_training(Progress("joint", 1, 4, 2, 5, 420, 84.0, {"loss": 2.0}, **second))
    display.show_training(Progress("joint", 1, 4, 5, 5, 500, 90.0, {"loss": 1.0}, **second))
    display.show_training(Progress("joint", 2, 4, 5, 5, 600, 100.0, {"loss": 0.5}, **second))
    assert capsys.readouterr().out.splitlines() == [
        "joint epoch=4/4 images=400 seconds=80.0 eta_s=0 loss=3",
        "joint: no epoch is better than the start; again from the start, at a lower rate",
        "joint epoch=1/4 images=500 seconds=90.0 eta_s=30 loss=1",
        "joint epoch=2/4 images=600 seconds=100.0 eta_s=20 loss=0.5",
    ]
