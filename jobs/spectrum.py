"""Measure what codes of every width could keep, as a Ray job.

    ray job submit --working-dir . -- python jobs/spectrum.py CONFIG [--set key=value ...] [--output FOLDER]

The same as `ka-ray spectrum`. The output folder must be reachable by every node. Exit code 2: bad input.
"""

import sys
from typing import Any

import ka_ray
from ka_ray.job import job_parser, run_job


def measure(config: ka_ray.Config, given: Any) -> None:
    """Measure, print the table."""
    print(ka_ray.measure_spectrum(config).to_markdown())


if __name__ == "__main__":
    sys.exit(run_job(job_parser(__doc__), ka_ray.Config, measure))
