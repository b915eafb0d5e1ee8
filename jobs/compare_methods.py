"""Compare ways to make the student, as a Ray job.

    ray job submit --working-dir . -- python jobs/compare_methods.py CONFIG --methods direct --output DIR

The same as `ka-ray compare`. DIR must be reachable by every node of the cluster.
Exit code 2: bad input; 75: machines failed, the same command goes on.

What `.gitignore` names stays behind, even teachers in runs/; `ka-ray submit` sends what the config names.
With RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 all travels but what `.rayignore` names. 100 MiB at most.
"""

import sys
from typing import Any

import ka_ray
from ka_ray.submission.script import job_parser, run_job


def compare(config: ka_ray.Config, given: Any) -> None:
    """Compare, print the table."""
    print(ka_ray.compare(config, given.methods.split(","), given.seeds, given.vary).to_markdown())


if __name__ == "__main__":
    parser = job_parser(__doc__)
    parser.add_argument("--methods", default="direct,distill")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=V1,V2")
    sys.exit(run_job(parser, ka_ray.Config, compare))
