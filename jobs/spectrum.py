"""Measure what codes of every width could keep, as a Ray job.

    ray job submit --working-dir . -- python jobs/spectrum.py CONFIG --output DIR [--set key=value ...]

The same as `ka-ray spectrum`. DIR must be reachable by every node of the cluster.
Exit code 2: bad input; 75: machines failed, the same command goes on.

What `.gitignore` names stays behind, even teachers in runs/; `ka-ray submit` sends what the config names.
With RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 all travels but what `.rayignore` names. 100 MiB at most.
"""

import sys
from typing import Any

import ka_ray
from ka_ray.submission.script import job_parser, run_job


def measure(config: ka_ray.Config, given: Any) -> None:
    """Measure, print the table."""
    print(ka_ray.measure_spectrum(config).to_markdown())


if __name__ == "__main__":
    sys.exit(run_job(job_parser(__doc__), ka_ray.Config, measure))
