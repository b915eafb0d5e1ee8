"""Evaluate a finished student on labelled images, as a Ray job.

    ray job submit --working-dir . -- python jobs/evaluate_student.py DIR --images FOLDER

The same as `ka-ray evaluate`, with the same options and exit codes. Every node must reach DIR and FOLDER.
"""

import sys

from ka_ray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
