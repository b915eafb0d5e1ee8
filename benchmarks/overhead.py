"""Measure where the time of the demo goes, and what its processes cost.

    .venv/bin/python benchmarks/overhead.py
    .venv/bin/python benchmarks/overhead.py --workers 2

Runs the demo in processes of their own, each of which measures its own steps, and prints the median seconds
of each step. The demo's images and networks are tiny, so nearly all of it is what every run pays once.
"""

import argparse
import contextlib
import functools
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DIGITS = Path(__file__).parents[1] / "jobs" / "configs" / "digits.yaml"

STEPS = {
    "planning": ("ka_ray.workflows.amalgamate", "plan_run"),
    "starting Ray": ("ray", "init"),
    "opening MLflow": ("ka_ray.runs.context", "open_tracker"),
    "teaching: a pass that reads the images": ("ka_ray.runs.teachers", "store_images"),
    "teaching: training": ("ka_ray.runs.teachers", "train"),
    "extraction": ("ka_ray.workflows.amalgamate", "extract"),
    "learning the student": ("ka_ray.workflows.amalgamate", "learn"),
    "evaluation": ("ka_ray.workflows.amalgamate", "evaluate_student"),
    "report, figures, model in MLflow": ("ka_ray.workflows.amalgamate", "publish"),
    "ending Ray": ("ray", "shutdown"),
}
"""Step -> the module and name of the function that does it."""

ENTERED = {"opening MLflow"}
"""Steps whose function returns a context manager, of which entering it is measured."""

IMPORTING, OTHER, ALL = "importing Python modules", "starting and ending Python, and the rest", "all"


def measure_steps(arguments: list[str]) -> dict[str, float]:
    """Run the demo in this process; return the seconds of each step."""
    began = time.perf_counter()
    # Ray Data and MLflow are imported when they are first used, so a little of it is counted elsewhere.
    modules = {name: importlib.import_module(name) for name, _ in STEPS.values()}
    seconds = {IMPORTING: time.perf_counter() - began}
    for step, (module, name) in STEPS.items():
        wrap, add = _timed_entry if step in ENTERED else _timed, functools.partial(_add, seconds, step)
        setattr(modules[module], name, wrap(getattr(modules[module], name), add))
    from ka_ray.config import Config

    modules["ka_ray.workflows.amalgamate"].amalgamate(Config.load(DIGITS, arguments))
    return seconds


def _add(seconds: dict[str, float], step: str, spent: float) -> None:
    seconds[step] = seconds.get(step, 0.0) + spent


def _timed(function: Callable[..., Any], add: Callable[[float], None]) -> Callable[..., Any]:
    """Return a function that does the same and adds up its seconds."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            add(time.perf_counter() - began)

    return call


def _timed_entry(function: Callable[..., Any], add: Callable[[float], None]) -> Callable[..., Any]:
    """Return a function whose context manager does the same and adds up the seconds of entering it."""

    @contextlib.contextmanager
    def enter(*args: Any, **kwargs: Any) -> Iterator[Any]:
        began = time.perf_counter()
        with function(*args, **kwargs) as value:
            add(time.perf_counter() - began)
            yield value

    return enter


def measure_demo(workers: str) -> dict[str, float]:
    """Run the demo in a process of its own; return the seconds of each step and of all."""
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder) / "steps.json", Path(folder) / "run"
        overrides = [f"output={output}", f"ray.workers={workers}"]
        command = [sys.executable, __file__, "--steps", str(result), *overrides]
        began = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True)
        total = time.perf_counter() - began
        if ended.returncode:
            sys.exit(f"the demo failed:\n{ended.stdout}{ended.stderr}")
        steps: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return steps | {OTHER: total - sum(steps.values()), ALL: total}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of the demo")
    parser.add_argument("--workers", default="null", help="ray.workers; null: the command trains by itself")
    arguments = parser.parse_args()
    runs = [measure_demo(arguments.workers) for _ in range(arguments.repeats)]
    print(f"| the demo, ray.workers: {arguments.workers}, median of {len(runs)} | seconds |\n|---|---:|")
    for step in [IMPORTING, *STEPS, OTHER, ALL]:
        print(f"| {step} | {statistics.median(run[step] for run in runs):.1f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--steps"]:
        Path(sys.argv[2]).write_text(json.dumps(measure_steps(sys.argv[3:])), encoding="utf-8")
    else:
        main()
