"""Train one teacher, as a Ray job.

    ray job submit --working-dir . -- python jobs/train_teacher.py jobs/configs/cifar10_teacher_a.yaml

The same as `ka-ray teach`. Exit code 2: bad input.
"""

import sys
from typing import Any

import ka_ray
from ka_ray.job import job_parser, run_job


def teach(config: ka_ray.TeachConfig, given: Any) -> None:
    """Train, print where the teacher is."""
    result = ka_ray.teach(config)
    print(f"teacher={result['teacher']} accuracy={result['accuracy']} checkpoint={result['checkpoint']}")


if __name__ == "__main__":
    sys.exit(run_job(job_parser(__doc__), ka_ray.TeachConfig, teach))
