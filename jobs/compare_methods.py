"""Compare methods of making the student, as a Ray job.

    ray job submit --working-dir . -- python jobs/compare_methods.py CONFIG --methods direct --output DIR

The same as `ka-ray compare`, with the same options and exit codes. Every node must reach DIR.

See jobs/README.md for which files are sent with a job.
"""

import sys

from ka_ray.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
