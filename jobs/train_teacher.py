"""Train one teacher, as a Ray job.

    ray job submit --working-dir . -- python jobs/train_teacher.py CONFIG --output DIR

The same as `ka-ray teach`. DIR must be reachable by every node of the cluster.
Exit code 2: bad input; 75: machines failed, the same command goes on.

What `.gitignore` names stays behind, even teachers in runs/; `ka-ray submit` sends what the config names.
With RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 all travels but what `.rayignore` names. 100 MiB at most.
"""

import sys
from typing import Any

import ka_ray
from ka_ray.submission.script import job_parser, run_job


def teach(config: ka_ray.TeachConfig, given: Any) -> None:
    """Train, print where the teacher is."""
    result = ka_ray.teach(config)
    print(f"teacher={result['teacher']} accuracy={result['accuracy']} checkpoint={result['checkpoint']}")


if __name__ == "__main__":
    sys.exit(run_job(job_parser(__doc__), ka_ray.TeachConfig, teach))
