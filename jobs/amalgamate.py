"""Merge teachers into one student, as a Ray job.

    ray job submit --working-dir . -- python jobs/amalgamate.py jobs/configs/digits.yaml --output DIR

The same as `ka-ray run`. DIR must be reachable by every node of the cluster.
Exit code 2: bad input; 75: machines failed, the same command goes on.

What `.gitignore` names stays behind, even teachers in runs/; `ka-ray submit` sends what the config names.
With RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 all travels but what `.rayignore` names. 100 MiB at most.
"""

import sys
from typing import Any

import ka_ray
from ka_ray.submission.script import job_parser, run_job


def merge(config: ka_ray.Config, given: Any) -> None:
    """Merge, print the report."""
    report = ka_ray.amalgamate(config)
    print(report.to_markdown())
    print(f"mlflow_tracking_uri={report.mlflow.tracking_uri} mlflow_run_id={report.mlflow.run_id}")


if __name__ == "__main__":
    parser = job_parser(__doc__)
    parser.add_argument("--extend", help="output folder of a finished run to which this one adds teachers")
    sys.exit(run_job(parser, ka_ray.Config, merge))
