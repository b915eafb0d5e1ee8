"""Predict the class of image files, as a Ray job.

    ray job submit --working-dir . -- python jobs/predict.py DIR IMAGE...

The same as `ka-ray predict`, with the same options and exit codes. DIR is the output folder of a
finished run. DIR and the images are paths on the cluster, or relative paths of files that are sent with the
job.
"""

import sys

from ka_ray.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
