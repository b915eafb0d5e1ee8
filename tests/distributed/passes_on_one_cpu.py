"""Run passes over images on a Ray of one CPU: a separate program, because a process can have only one Ray.

Usage: python passes_on_one_cpu.py CONFIG STUDENT RESULT PASS...

Each PASS is `evaluation`, `extraction` or `summing`.
"""

import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ka_ray.config import Config
from ka_ray.distributed.cluster import connect
from ka_ray.distributed.evaluate import evaluate_images
from ka_ray.distributed.evaluator import Evaluation
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.reduce import reduce_images
from ka_ray.distributed.resource_plan import plan_resources
from ka_ray.distributed.resources import pools_of
from ka_ray.images.split import split_images
from ka_ray.student.from_moments import LayerMomentsMeter
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.reading import ReadSpec

POSITIONS, SEED = 5, 7
"""Positions per image, and seed of the drawn positions, in the pass ``summing``."""


def main(config_path: str, student: str, result: str, *passes: str) -> None:
    """Run passes and pickle a dict: their results by name, the number of CPUs and the notes of the plan."""
    config, results = Config.load(config_path), dict[str, Any]()
    images, folder = split_images(config)[0], config.output_dir
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    read_spec = ReadSpec(plan.paths, plan.spaces, config.scores)
    with connect(config.ray) as cluster:
        resources = plan_resources(config, cluster)
        results |= {"cpus": cluster.size["cpus"], "notes": resources.notes}
        pools, teachers = pools_of(config, resources.placement), config.teachers
        if "evaluation" in passes:
            work = Evaluation(images, plan.label_sets, teachers, {"student": Path(student)}, pools)
            results["evaluation"] = evaluate_images(work, lambda _: None)[0]
        if "extraction" in passes:
            extract_features(Extraction(images, folder, 1000), teachers, pools, read_spec, lambda _: None)
        if "summing" in passes:
            stacked = {tap: shape[0] for tap, shape in plan.shapes.items()}
            make_meter = partial(LayerMomentsMeter, plan.spec, stacked, POSITIONS)
            work = Extraction(images, folder, row_bytes=0)
            results["summing"] = reduce_images(
                work, teachers, pools, read_spec, make_meter, SEED, lambda _: None
            )[0]
    Path(result).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
