"""Merge teachers into one student, as a Ray job.

    ray job submit --working-dir . -- python jobs/amalgamate.py CONFIG --output DIR [--set KEY=VALUE ...]

The same as `ka-ray run`, with the same options and exit codes. Every node must reach DIR.

See jobs/README.md for which files are sent with a job.
"""

import sys

from ka_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
