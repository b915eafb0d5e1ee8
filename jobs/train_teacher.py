"""Train one teacher, as a Ray job.

    ray job submit --working-dir . -- python jobs/train_teacher.py CONFIG --output DIR [--set KEY=VALUE ...]

The same as `ka-ray teach`, with the same options and exit codes. DIR must be a path that every node of the
cluster can read and write, such as a shared file system.

See jobs/README.md for which files are sent with a job.
"""

import sys

from ka_ray.cli import main

if __name__ == "__main__":
    main(["teach", *sys.argv[1:]])
